"""What to do about credentials that AWS takes no more, by where they came from. Hides botocore's names of its sources."""

from __future__ import annotations

from gpulab.model.typed import typed

_THEN = ", then repeat the command; it goes on where it stopped"


def renewal(source: str, *, aws_profile: str, is_aws_file: bool, profile: str = "") -> str:
    """
    Say how credentials are renewed, as a hint.

    Args:
        source: As botocore calls it: `env`, `sso`, `shared-credentials-file`, ...; `""` where nobody knows.
        aws_profile: Of the AWS configuration; `""` for AWS's own default.
        is_aws_file: Whether a file of keys is AWS's own; otherwise it is the one into which `gpulab init --paste` writes, or the sandbox's.
        profile: Of gpulab, as `--profile` must name it; `""` for the default one, or where nobody knows.

    Source:
        `METHOD` of the providers in `botocore.credentials`, botocore 1.44.
    """
    named = f" --profile {aws_profile}" if aws_profile else ""
    paste = f"{typed('init --paste', profile=profile)} takes new ones"
    match source:
        case "env":
            ways = f"Set the environment's AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN anew, or {paste} from a class page"
        case "sso":
            ways = f"`aws sso login{named}` signs in again"
        case "login":
            ways = f"`aws login{named}` signs in again"
        case "shared-credentials-file" | "config-file" if is_aws_file:
            file = "credentials" if source == "shared-credentials-file" else "config"
            section = aws_profile or "default"
            ways = f"Write new keys below [{section}] in AWS's {file} file, or {paste} from a class page"
        case "shared-credentials-file" | "config-file":
            ways = f"{paste} from the class page"
        case _:
            ways = f"Sign in again where they came from, such as with `aws sso login{named}`, or {paste} from a class page"
    return ways + _THEN
