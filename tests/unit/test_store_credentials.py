"""Pasted credentials: every form class pages use, and no secret in any message."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulab.errors import WrongUsage
from gpulab.store.credentials import parse_pasted, write_credentials

ID = "ASIAQWERTYUIOPASDFGH"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY12"
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ=="


@pytest.mark.parametrize(
    "text",
    [
        f"[default]\naws_access_key_id={ID}\naws_secret_access_key={SECRET}\naws_session_token={TOKEN}\n",
        f"[default]\r\naws_access_key_id = {ID}\r\naws_secret_access_key = {SECRET}\r\naws_session_token = {TOKEN}",
        f'export AWS_ACCESS_KEY_ID="{ID}"\nexport AWS_SECRET_ACCESS_KEY="{SECRET}"\nexport AWS_SESSION_TOKEN="{TOKEN}"\n',
        f'$Env:AWS_ACCESS_KEY_ID="{ID}"\n$Env:AWS_SECRET_ACCESS_KEY="{SECRET}"\n$Env:AWS_SESSION_TOKEN="{TOKEN}"\n',
        f"set AWS_ACCESS_KEY_ID={ID}\nset AWS_SECRET_ACCESS_KEY={SECRET}\nset AWS_SESSION_TOKEN={TOKEN}\n",
    ],
)
def test_every_form_that_aws_pages_offer_is_read(text):
    """Students paste what the page shows them, from three shells."""
    found = parse_pasted(text)

    assert (ID, SECRET, TOKEN) == (
        found.access_key_id,
        found.secret_access_key,
        found.session_token,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no `aws_access_key_id`"),
        (f"aws_access_key_id={ID}\n", "no `aws_secret_access_key`"),
        (
            f"aws_access_key_id={ID}\naws_secret_access_key={SECRET}\n",
            "`aws_session_token` is missing",
        ),
        (
            f"aws_access_key_id={ID}\naws_access_key_id={ID}\n",
            "line 2 of the pasted text: `aws_access_key_id` is there twice",
        ),
        (
            f"aws_access_key_id=hunter2\naws_secret_access_key={SECRET}\n",
            "line 1 of the pasted text",
        ),
        (
            f"aws_access_key_id={ID}\naws_secret_access_key={SECRET[:10]}\n",
            "line 2 of the pasted text",
        ),
        ("x" * 70_000, "too long"),
    ],
)
def test_a_broken_paste_names_the_line_and_never_the_text(text, said):
    """The message may end up in a screenshot to a TA."""
    with pytest.raises(WrongUsage) as caught:
        parse_pasted(text)

    words = caught.value.message + caught.value.hint
    assert said in words
    assert not [secret for secret in (ID, SECRET, SECRET[:10], "hunter2") if secret in words]


def test_kept_credentials_are_the_owners_alone(tmp_path):
    """Another user of the same laptop must not read them."""
    path = tmp_path / "aws" / "credentials"

    write_credentials(
        path,
        parse_pasted(f"aws_access_key_id=AKIA{'A' * 16}\naws_secret_access_key={SECRET}"),
        profile="gpulab",
    )

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert (
        f"[gpulab]\naws_access_key_id = AKIA{'A' * 16}\naws_secret_access_key = {SECRET}\n"
        == path.read_text()
    )


def test_credentials_never_show_themselves():
    """A traceback prints the values of a frame."""
    found = parse_pasted(f"aws_access_key_id=AKIA{'A' * 16}\naws_secret_access_key={SECRET}")

    assert "Credentials(...)" == repr(found)


@given(st.text(max_size=300))
def test_no_paste_makes_it_fail_in_another_way(text):
    """Whatever lies in the clipboard ends in keys or a clean refusal."""
    try:
        parse_pasted(text)
    except WrongUsage as error:
        assert error.exit_code == 2
