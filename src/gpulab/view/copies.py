"""What a copy did, in one or a few lines."""

from __future__ import annotations

from gpulab.remote.copying import CopyReport, Progress
from gpulab.view.words import counted, in_line

_SHOWN = 5


def size(count: int) -> str:
    """Write a size as `21.3 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def file_count(count: int) -> str:
    """Write a number of files, `1 file`."""
    return counted(count, "file")


def progress_text(progress: Progress) -> str:
    """Say how far a copy is."""
    return f"{progress.files} of {file_count(progress.total_files)}, {size(progress.bytes)} of {size(progress.total_bytes)}"


def copy_text(report: CopyReport) -> str:
    """Say what was copied, and by name what was not."""
    lines = [
        f"{file_count(report.files)} copied ({size(report.bytes)}), {report.unchanged} unchanged, {report.verified_files} verified by hash"
    ]
    lines += [f"left out  {item.path}: {item.reason}" for item in report.skipped[:_SHOWN]]
    if len(report.skipped) > _SHOWN:
        lines.append(f"left out  {len(report.skipped) - _SHOWN} more")
    lines += [
        f"changing  {path} was written to meanwhile; copy it again"
        for path in report.changing[:_SHOWN]
    ]
    return "\n".join(in_line(line) for line in lines)
