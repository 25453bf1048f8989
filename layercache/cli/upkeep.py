"""`layercache verify`, `gc`, `compact`, `merge` and `rm`: keeping a store in order."""

import sys
from pathlib import Path

import click

from layercache.cli import completion
from layercache.cli.options import StorePath, json_option, quiet_option, store_option
from layercache.cli.output import named, print_json, reporter
from layercache.errors import RecipeError


@click.command()
@click.option("--deep", is_flag=True, help="Read every byte: checksums, row counts, keys, finite values.")
@click.option("--repair", "mend", is_flag=True, help="Move what is damaged to .quarantine; extract makes it again.")
@store_option
@quiet_option
@json_option
def verify(deep: bool, mend: bool, store: Path, quiet: bool, as_json: bool) -> None:
    """Check the store's files; exit code 1 when something is wrong.

    Damage that keeps sizes as they are is found by --deep only. What --repair moves lies in the store's .quarantine until
    `layercache gc` removes it; with it gone, the same extract as before computes just what is missing.

    \b
    layercache verify --deep --store demo-store
    """
    from layercache.store import repair
    from layercache.store import verify as verifier

    progress = reporter(quiet)
    problems = verifier.verify(store, deep=deep, progress=progress)
    moved = repair.repair(store, problems) if mend else []
    left = verifier.verify(store, deep=deep, progress=progress) if moved else problems
    if as_json:
        listed = [problem._asdict() for problem in problems]
        print_json({"problems": listed, "moved": [one._asdict() for one in moved], "left": len(left)})
    else:
        for problem in problems:
            click.echo(named(str(problem)))
        for one in moved:
            click.echo(named(f"moved {one.path} to {one.to}"))
        progress.note(_verdict(len(problems), len(left), mend))
    sys.exit(1 if left else 0)


def _verdict(found: int, left: int, mended: bool) -> str:
    if not found:
        return "no problems found"
    if not mended:
        return f"{found} problems; --repair moves what is damaged aside, so that extract can make it again"
    return f"{found} problems, {left} left; extract again to make what was moved aside"


@click.command()
@click.option("--older-than", default="1h", show_default=True, metavar="TIME", help="Leave alone what is younger.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@store_option
@quiet_option
@json_option
def gc(older_than: str, dry_run: bool, store: Path, quiet: bool, as_json: bool) -> None:
    """Remove unfinished work, replaced shards and what is in quarantine.

    Unfinished work of a writer that is alive on this machine stays, whatever its age. A store that several machines write
    to, or read, needs a TIME longer than any of them takes over one shard or one analysis: 30m, 1h, 7d.

    \b
    layercache gc --dry-run
    layercache gc --older-than 7d
    """
    from layercache import quantities
    from layercache.store import cleanup

    progress = reporter(quiet)
    done = cleanup.collect(store, older_than=quantities.seconds(older_than), dry_run=dry_run, progress=progress)
    if as_json:
        print_json({name: [one._asdict() for one in listed] for name, listed in done._asdict().items()})
        return
    for one in (*done.removed, *done.kept):
        click.echo(named(f"{one.path}: {one.what}"))
    size = quantities.in_words(sum(one.bytes for one in done.removed))
    progress.note(f"{len(done.removed)} {'would be ' if dry_run else ''}removed, {size}")


@click.command()
@click.argument("run_names", nargs=-1, metavar="[RUN]...", shell_complete=completion.runs)
@click.option("--size", default="256MB", show_default=True, help="Size of a new shard's files, about.")
@store_option
@quiet_option
@json_option
def compact(run_names: tuple[str, ...], size: str, store: Path, quiet: bool, as_json: bool) -> None:
    """Make few large shards of many small ones, of every run or those named.

    What is stored stays the same, row for row. It takes the disk space of what is rewritten until `layercache gc` removes
    the old shards, and about three times SIZE of memory. Results computed before are computed again when asked for.

    \b
    layercache compact
    layercache compact demo --size 1GB
    """
    from layercache import quantities
    from layercache.store import compact as compacting
    from layercache.store import reader

    opened, progress = reader.open(store), reporter(quiet)
    limit = quantities.nbytes(size)
    done = []
    for run in [opened.run(name) for name in run_names] or opened.runs():
        for condition in opened.conditions(run):
            done.append(compacting.compact(opened, run, condition, size=limit, progress=progress))
            one = done[-1]
            progress.note(f"{one.run}, {condition}: {one.shards} shards, {one.replaced} replaced by {len(one.made)}")
    if as_json:
        print_json([one._asdict() for one in done])


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="STORE...", type=StorePath())
@store_option
@quiet_option
@json_option
def merge(sources: tuple[Path, ...], store: Path, quiet: bool, as_json: bool) -> None:
    """Copy what other stores hold into the store.

    Runs of the same model and settings become one, whatever they are called; a sample that two shards hold counts once. The
    other stores are only read. A merge that was stopped goes on where it was.

    \b
    layercache merge machine-a/store machine-b/store --store all
    """
    from dataclasses import asdict

    from layercache import quantities
    from layercache.store import merge as merging

    progress = reporter(quiet)
    merging.check(sources, store)
    done = [merging.merge(source, store, progress) for source in sources]
    if as_json:
        print_json([asdict(one) for one in done])
        return
    for one in done:
        for note in one.notes:
            progress.note(note)
        size = quantities.in_words(one.bytes)
        click.echo(
            f"{named(str(one.source))}: new runs: {one.runs}, {one.shards} shards ({one.there} were there), {one.files} files,"
            f" {one.results} results, {size}"
        )


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@click.option(
    "--condition", shell_complete=completion.conditions, help="Remove only what was stored under this condition."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@quiet_option
@json_option
def rm(run_name: str, condition: str | None, yes: bool, store: Path, quiet: bool, as_json: bool) -> None:
    """Remove a run from the store, and the results that were computed from it.

    It cannot be undone: extract and analyze make both again, with the model.

    \b
    layercache rm demo-early --store demo-store
    layercache rm demo --condition knockout-question --yes
    """
    from layercache import quantities
    from layercache.store import reader, removal

    opened = reader.open(store)
    run = opened.run(run_name)
    asked = removal.plan(opened, run, condition)
    what = run.id if condition is None else f"{run.id}, condition {condition}"
    size = quantities.in_words(asked.bytes)
    if not yes and not _confirmed(f"remove {what} ({asked.shards} shards, {asked.results} results, {size})?"):
        if as_json:
            print_json({"run": run.id, "condition": condition, "removed": False})
        reporter(quiet).note("nothing was removed")
        return
    removal.carry_out(store, asked)
    if as_json:
        counts = {"shards": asked.shards, "results": asked.results, "bytes": asked.bytes}
        print_json({"run": run.id, "condition": condition, "removed": True, **counts})
    reporter(quiet).note(f"removed {what}: {asked.shards} shards, {asked.results} results, {size}")


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise RecipeError("nobody to ask, and nothing was removed: say --yes") from None
