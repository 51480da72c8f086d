"""HTML of the Dataset tab's summary, checks and bucket histogram."""

from collections.abc import Sequence

from core.dataset.images.opening import SKIP
from core.dataset.report import Report
from core.record.problems import Problem, errors_first
from core.record.units import count
from core.settings.job import TrainJob
from tabs.markup import esc, problems_html, progress, section

BUCKETS_SHOWN = 16
PROBLEMS_SHOWN = 30
# -- what is shown on top


def summary(report: Report | None, layout: str, doing: tuple[str, float]) -> str:
    """Return the HTML of image counts, folder layout and progress.

    layout: sentence on the folders; doing: (text, fraction done) of the reading, ("", 0) if none runs
    """
    parts = []
    if report is not None and report.rows:
        all_images = count(len(report.rows), "image")
        # Only decoding finds damage after a valid header: until then it is unknown whether an image can be trained.
        will = "will" if report.ok else "can"  # not before what blocks is solved
        share = f"{all_images} found" if report.undecoded else f"{report.trained:,} of {all_images} {will} train"
        captions = f"{report.captions_found:,} with a caption"
        held_out = sum(row.role == "validation" for row in report.rows)
        link = f'<button type="button" class="link" data-field="validation.best_checkpoint">{held_out:,} held out for validation</button>, '
        sentence = report.sentence.rstrip(".") + "."
        parts.append(
            f'<p class="lead"><strong>{esc(share)}</strong>, {link if held_out else ""}{esc(captions)}. {esc(sentence)}</p>'
        )
    if layout:
        parts.append(f'<p class="hint">{esc(layout)}</p>')
    text, share_done = doing
    progress_html = progress(text, share_done if share_done > 0 else None) if text else ""
    parts.append(f'<div class="doing">{progress_html}</div>')  # its line is kept free: reading moves nothing
    return f'<div class="summary">{"".join(parts)}</div>'


def state(report: Report | None, problems: Sequence[Problem], busy: bool, folders: Sequence[str]) -> str:
    """Return the HTML of the line below the folder's field: the first error, else how many images were found. folders: their names"""
    error = next((problem.what for problem in problems if problem.level == "error"), "")
    if not error and report is None:
        error = "Reading the folder ..." if busy else "No folder selected."
    place = folders[0] if len(folders) == 1 else count(len(folders), "folder")
    images = f"{count(len(report.rows) if report else 0, 'image')} found in {place}."
    return f'<p class="hint" id="ds-folder-state">{esc(error or images)}</p>'


# -- checks


def checks(job: TrainJob, report: Report | None, problems: Sequence[Problem], checking: bool = False) -> str:
    """Return the HTML of the first PROBLEMS_SHOWN problems, errors first, below the option to skip broken images.

    checking: whether the check is still running
    """
    broken = sum(problem.remedy == SKIP for problem in problems)
    body = ""
    if broken or job.dataset.skip_broken:
        skips = job.dataset.skip_broken
        images = count(broken, "broken image")
        label = f"Skip {images if broken else 'broken images'}"
        if skips and broken:
            label = f"{images} {'is' if broken == 1 else 'are'} skipped"
        checked = " checked" if skips else ""
        body += (
            f'<label class="switch consent"><input type="checkbox" data-act="skip"{checked}>'
            f"<span>{esc(label)}</span></label>"
        )
    ordered = errors_first(problems)
    listed = ordered[:PROBLEMS_SHOWN]
    if listed:
        body += problems_html(listed)
    if len(ordered) > len(listed):
        body += f'<p class="hint">and {count(len(ordered) - len(listed), "more finding")}</p>'
    errors = sum(problem.level == "error" for problem in problems)
    if not problems and checking:
        body += '<p class="hint">Checking</p>'
    elif not problems and report is not None:
        body += '<p class="good">No problems found.</p>'
    tally = [count(errors, "error")] if errors else []
    tally += [count(len(problems) - errors, "piece", "pieces") + " of advice"] if len(problems) > errors else []
    return section("Checks", body or '<p class="hint">Not checked yet.</p>', esc(", ".join(tally)))


# -- shapes


def histogram(report: Report | None, show: str) -> str:
    """Return the HTML of a bar for each of the BUCKETS_SHOWN largest buckets, which shows its images; "" without buckets.

    show: view of the image grid, such as "512x768"
    """
    if report is None or not report.buckets:
        return ""
    most = max(number for number, _ in report.buckets.values())
    ordered = sorted(report.buckets.items(), key=lambda item: (-item[1][0], item[0]))
    rows = []
    for (width, height), (number, views) in ordered[:BUCKETS_SHOWN]:
        value = f"{width}x{height}"
        pressed = "true" if show == value else "false"
        longer = "width" if width >= height else "height"
        shape = f'<i class="shape" style="aspect-ratio:{width}/{height};{longer}:14px"></i>'
        repeated = f", {views:,} views an epoch" if views != number else ""
        rows.append(
            f'<button type="button" class="bar" data-again data-act="show" data-arg="{value if show != value else "all"}" '
            f'aria-pressed="{pressed}"'
            f' title="{number:,} images{repeated}"><span class="shape-box">{shape}</span><span '
            f'class="size">{width} × {height}</span>'
            f'<span class="track"><i style="width:{100 * number / most:.1f}%"></i></span><span '
            f'class="num">{number:,}</span></button>'
        )
    if len(ordered) > BUCKETS_SHOWN:
        rows.append(f'<p class="hint">and {count(len(ordered) - BUCKETS_SHOWN, "smaller bucket")}</p>')
    return section("Buckets", "".join(rows), esc(f"{len(ordered)} {'size' if len(ordered) == 1 else 'sizes'}"))
