"""What happens while a plan is carried out, told to a person: one line a step, with its seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gpulab.errors import AccountNotReady, GpulabError, QuotaTooLow
from gpulab.launch import events
from gpulab.view.console import Console, Step
from gpulab.view.copies import file_count, size
from gpulab.view.instances import failure_lines
from gpulab.view.plan import most_usd
from gpulab.view.words import local_time, money, one_line, per_hour, span

# The instance's own phases, in a student's words.
_PHASES = {
    "armed": "Arming the end on the instance",
    "host-keys": "Making host keys",
    "ssh": "Closing ssh to all but your key",
    "work": "Bringing your work back",
    "jupyter": "Installing and starting JupyterLab",
    "notebooks": "Bringing the lab's notebooks",
    "environment": "Installing the lab's environment",
    "gpu": "Checking the GPU",
    "data": "Fetching the lab's data sets",
}
_WAITS = {
    "open launch": "Waiting until AWS must show what an interrupted launch has made",
    "running": "Waiting for the instance to run",
    "bucket": "Waiting for the bucket that keeps the work",
    "host key": "Reading its host key from the console",
    "ssh": "Waiting for ssh",
    "jupyter": "Waiting for JupyterLab",
    "other copy": "Waiting for the copy that an open tunnel is making",
    "terminated": "Waiting until it has ended",
    "image": "Waiting for AWS to make the image",
    "environment": "Waiting for the lab's environment",
}


class Teller:
    """Tells events as they come; keeps one step open at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step: Step | None = None
        self._key = ""
        self._is_found = False

    def tell(self, event: events.Event) -> None:
        """Say one event."""
        match event:
            case events.Attempting(offer=offer):
                place = offer.place
                self._begin(
                    f"ask{place}",
                    f"Asking {place.zone} for a {place.instance_type} ({place.market}, {per_hour(offer.usd_per_hour)})",
                )
            case events.PlaceRefused(error=error):
                self._detail("")
                self._end(_cause(error))
            case events.Repeating(error=error, wait_seconds=pause):
                self._detail(f"({_cause(error)}; again in {pause:.0f} s)")
            case events.Launched(instance=instance):
                self._detail("")
                self._end(instance.id)
                self._wait("running")
            case events.AlreadyUp() | events.Resumed():
                self._is_found = True
                self._tell_whole(event)
            case events.Running(instance=instance):
                if self._key == "running" or not self._is_found:
                    self._wait("running")
                    self._end(instance.address or "it runs")
                self._wait("host key")
            case events.WaitingFor(what=what, detail=detail):
                self._wait(what)
                self._detail(detail)
            case events.HostKeyPinned(fingerprint=fingerprint):
                self._wait("host key")
                self._end(f"pinned {fingerprint}")
                self._wait("ssh")
            case events.LoggedIn():
                self._wait("ssh")
                self._end("it answers")
            case events.PhaseChanged():
                self._phase(event)
            case events.Ready():
                self._end(
                    "it answers"
                    if self._key in ("jupyter", "phase jupyter")
                    else "goes on in the background"
                )
            case events.Ended() | events.ImageCopied():
                self._set_aside()
                self._tell_whole(event)
            case _:
                self._tell_whole(event)

    def close(self) -> None:
        """End the open step, if any, as not finished."""
        if self._step is not None:
            self._end("not finished")

    def _wait(self, what: str) -> None:
        self._begin(what, _WAITS.get(what, f"Waiting for {what}"))

    def _tell_whole(self, event: events.Event) -> None:
        text = sentence(event)
        if text:
            self._interrupt(f"  {text}")

    def _phase(self, event: events.PhaseChanged) -> None:
        text = _PHASES.get(event.name, event.name)
        if event.state == "running":
            self._begin(f"phase {event.name}", text)
            self._detail(one_line(event.message))
        elif event.state in ("done", "failed"):
            was_watched = self._key == f"phase {event.name}"
            self._set_aside()
            if self._is_found and event.state == "done" and not was_watched:
                return  # an instance that was found had this behind it long ago
            took = f"{event.seconds:.1f} s on the instance"
            first = event.message.partition("\n")[0]
            is_telling = first and (event.state == "failed" or event.name == "work")
            said = f": {one_line(first)}" if is_telling else ""
            self._console.say(f"  {text}: {event.state}, {took}{said}")
            # What this computer could not bring says itself how it is repeated.
            if event.state == "failed" and event.name != "notebooks":
                for line in failure_lines(event.message):
                    self._console.say(f"    {line}")

    def _interrupt(self, line: str) -> None:
        """Say a whole line; the open step goes on below it."""
        if self._step is not None:
            self._step.erase()
        self._console.say(line)
        if self._step is not None:
            self._step.draw()

    def _begin(self, key: str, text: str) -> None:
        if key == self._key:
            return
        self._set_aside()
        self._key, self._step = key, Step(self._console, text, self._console.monotonic())
        self._step.draw()

    def _detail(self, text: str) -> None:
        if self._step is not None:
            self._step.detail(text)

    def _end(self, how: str) -> None:
        if self._step is not None:
            self._step.end(how)
        self._step, self._key = None, ""

    def _set_aside(self) -> None:
        """Take the open step back: what it waited for has come about, or another line tells its end."""
        if self._step is not None:
            self._step.drop()
        self._step, self._key = None, ""


def _cause(error: GpulabError) -> str:
    """Say why a place refused; the step has named the type and the zone already."""
    return error.message.partition(": ")[2] or error.message


def sentence(event: events.Event) -> str:
    """Say an event that is not a step in one sentence; empty when there is nothing to say."""
    match event:
        case events.Resumed(instance=instance):
            return f"Found {instance.id} from a launch that was interrupted; nothing new is started"
        case events.AlreadyUp(instance=instance):
            return f"{instance.name} is up already ({instance.id}); nothing new is started"
        case events.Declined():
            return "Nothing was started"
        case events.Guarded(at=at, until=until):
            return f"The account ends it {local_time(until, now=at)}, whatever happens to it or to this computer"
        case events.Unguarded(is_asked_again=True):
            return "The account's scheduler cannot use its role yet, which takes some seconds after it was made; it is asked again once the instance runs"
        case events.Unguarded(why=why):
            return f"No scheduled end in the account ({why}); the timer on the instance ends it"
        case events.Warned(text=text):
            return f"note: {text}"
        case events.Restored(files=number, size_bytes=count):
            return f"Your work is back: {file_count(number)}, {size(count)}, compared by hash"
        case events.ImageChosen(why=why):
            return why
        case events.ImageChecked(instance=instance, passed=passed, checks=checks):
            return f"{instance.name}: {passed} of {checks} checks passed, the others do not apply"
        case events.ImageMaking(instance=instance):
            return f"{instance.name} is clean; AWS makes an image of it"
        case events.ImageMade(image=image):
            return f"{image.image.id} ({image.image.name}) was tested; `gpulab up --env {image.environment}` uses it in {image.image.region}"
        case events.ImageCopied(image=image):
            return f"{image.id} can be used in {image.region}"
        case events.NotebooksBrought(text=text):
            return one_line(text)
        case events.Saving(where=where):
            return f"Saving the work to {where}"
        case events.Saved(where=where, files=number, size_bytes=count):
            return f"Saved and compared: {file_count(number)}, {size(count)}, in {where}"
        case events.Ending(instance=instance):
            return f"Ending {instance.id}"
        case events.Ended(instance=instance):
            return f"{instance.name} ({instance.id}) has ended and costs nothing more"
    return ""


def question_text(question: events.Question, *, now: datetime) -> str:
    """Ask a question about money in one line."""
    if isinstance(question, events.StartPlan):
        return f"Start it, at most {money(most_usd(question.plan))}?"
    offer, plan = question.offer, question.plan
    left = span(plan.ends_at - now)
    return (
        f"{_why_not_spot(question.causes)}. Buy a {offer.place.instance_type} on demand in {offer.place.zone} at {per_hour(offer.usd_per_hour)},"
        f" {per_hour(question.extra_usd_per_hour)} more, for {left}?"
    )


def _why_not_spot(causes: Sequence[GpulabError]) -> str:
    if any(isinstance(cause, QuotaTooLow) for cause in causes):
        return "The spot quota is too low"
    if any(isinstance(cause, AccountNotReady) for cause in causes):
        return "The account cannot buy spot"
    return "No spot instance is free"


def event_json(event: events.Event) -> dict[str, Any]:
    """Return one event for programs; `event` names its kind."""
    return {
        "event": type(event).__name__,
        **{k: v for k, v in vars(event).items() if k not in ("plan", "status")},
    }
