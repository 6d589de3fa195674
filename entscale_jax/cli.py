"""The command `entscale`: each subcommand reads its arguments and calls one function of the library."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast, overload

import typer
from rich.console import Console

from .buckets import parse_size
from .errors import UserError
from .scales import Scaling

app = typer.Typer(
    help="Draw at sizes that a diffusion model was not trained at, by the scale of its self-attention.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train a model from nothing.")
app.add_typer(train_app, name="train")
# Click's, which one version of typer imports and another holds a copy of.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


def main() -> None:
    """Runs the command. A user's mistake is one line on standard error and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "entscale"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except UserError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'entscale-jax[{extra}]'", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


_EXTRAS = {
    "ray": "sweep",
    "pyarrow": "sweep",
    "s3fs": "cloud",
    "gcsfs": "cloud",
    "fsspec": "cloud",
    "torch": "parity",
    "diffusers": "parity",
    "optax": "train",
    "jinja2": "report",
    "matplotlib": "report",
}


def _fail(message: str, code: int) -> None:
    print(f"entscale: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


Model = Annotated[str, typer.Option(help="A diffusers folder, a hub id, or scenes, the built-in model.")]
TrainSize = Annotated[
    str | None,
    typer.Option(help="WIDTHxHEIGHT in training, where the model's config does not say it right.", show_default=False),
]
Revision = Annotated[str | None, typer.Option(help="Of a hub id: a branch, a tag or a commit.", show_default=False)]
Variant = Annotated[str | None, typer.Option(help="Of the weights' files, such as fp16.", show_default=False)]
TrainEntropyFile = Annotated[
    Path | None,
    typer.Option(
        "--train-entropy", help="For rule calibrated, what entscale calibrate wrote; the model's if not given."
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read PyTorch's .bin where there are no safetensors.")
]
Resume = Annotated[bool, typer.Option(help="Keep what the run folder holds, or draw all of it again.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Draw cells again that failed before.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first cell that fails.")]
MaxFailures = Annotated[
    int | None, typer.Option(min=1, help="Stop at so many cells that fail; never if not given.", show_default=False)
]


@app.callback(invoke_without_command=True)
def entscale(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Draw at sizes that a diffusion model was not trained at, by the scale of its self-attention."""
    if version:
        from . import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One caption or several.", metavar="CAPTION...")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the training size if not given.")] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="original, entropy (the paper's), fixed with --multiplier, or calibrated; or one of the paper's "
            "comparison: resize, multidiffusion, or upscale with --upscaler."
        ),
    ] = "entropy",
    upscaler: Annotated[
        str | None,
        typer.Option(help="For --rule upscale: a diffusers folder or hub id that enlarges.", show_default=False),
    ] = None,
    multiplier: Annotated[
        str, typer.Option(help="Of 1/sqrt(d), for rule fixed: a number, or one a level as 0.9,0.9,0.8,0.8.")
    ] = "1",
    train_entropy: TrainEntropyFile = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, pndm, euler, euler_ancestral or dpmsolver++; the model's if not given.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Start from this picture, at its size.", show_default=False)
    ] = None,
    strength: Annotated[float, typer.Option(help="With --image, the share of the steps that is run.")] = 0.8,
    model: Model = "scenes",
    train_size: TrainSize = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Draw so many captions at a time; all if not given.", show_default=False)
    ] = None,
    tiling: Annotated[bool, typer.Option("--tiling", help="Decode in tiles, for pictures too large at once.")] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PNG to write; of several pictures, out-0.png, out-1.png and so on.")
    ] = Path("out.png"),
) -> None:
    """Draw captions and write PNG files whose text chunks say what made them."""
    from .generate import Job, run

    run(
        Job(
            prompts=tuple(prompts),
            model=model,
            size=_size(size),
            rule=rule,
            upscaler=upscaler,
            multiplier=_multiplier(multiplier),
            train_entropy=train_entropy,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            seed=seed,
            negative_prompt=negative_prompt,
            image=image,
            strength=strength,
            tiling=tiling,
            max_batch=max_batch,
            opening={
                "dtype": dtype,
                "train_size": _size(train_size),
                "revision": revision,
                "variant": variant,
                "allow_pickle": allow_pickle,
            },
            out=out,
        ),
        Console(stderr=True),
    )


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT: tokens and multipliers there, too.", show_default=False)
    ] = None,
    train_size: TrainSize = None,
    revision: Revision = None,
) -> None:
    """Print a model's family, training size and self-attention without fetching or loading its weights."""
    from .model_summary import print_model
    from .weights.folder import describe

    info = describe(model, train_size=_size(train_size), revision=revision, weights=False)
    print_model(info, _size(size), Console())


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, a file with one a line, or scenes; may be given again.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    seeds: Annotated[str, typer.Option(help="With commas: caption i is drawn with s + i for each s.")] = "0",
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="The model's if not given.", show_default=False)] = None,
    train_size: TrainSize = None,
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON to write.")] = Path("train_entropy.json"),
) -> None:
    """Measure the entropy of self-attention at the training size, which rule calibrated keeps at others."""
    from .calibration import run

    run(
        model,
        prompts or [],
        out,
        console=Console(stderr=True),
        steps=steps,
        seeds=_seeds(seeds),
        guidance=guidance,
        sampler=sampler,
        train_size=_size(train_size),
        revision=revision,
        variant=variant,
        allow_pickle=allow_pickle,
    )


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    out: Annotated[Path, typer.Argument(help="A new folder, which --model then takes.")],
    revision: Revision = None,
    variant: Variant = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a model as orbax checkpoints with a manifest: arrays in JAX's layout, read by each device by itself."""
    from .weights.convert import convert

    with Console(stderr=True).status("converting"):
        convert(model, out, revision=revision, variant=variant, allow_pickle=allow_pickle)
    print(f"wrote {out}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that entscale convert wrote.")],
    out: Annotated[Path, typer.Argument(help="A new folder, which PyTorch diffusers opens.")],
) -> None:
    """Write the diffusers folder that a converted model came from, with the same tensors bit for bit."""
    from .weights.convert import export

    with Console(stderr=True).status("exporting"):
        export(checkpoint, out)
    print(f"wrote {out}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with the sweep, such as sweeps/aspect.yaml.")],
    out: Annotated[
        str | None,
        typer.Option(help="Run folder, or s3:// or gs:// with one; runs/NAME if not given.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be drawn, with an estimate.")] = False,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    max_failures: MaxFailures = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: auto for the one of this node, or ray://HOST:10001; one on this machine if not given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw every size, method, caption and seed of a YAML file, and go on where it was left."""
    from .sweep import run_sweep

    code = run_sweep(
        file,
        out=out,
        dry_run=dry_run,
        resume=resume,
        retry_failed=retry_failed,
        max_failures=1 if fail_fast else max_failures,
        address=address,
    )
    raise typer.Exit(code)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML with the sweep and its cluster; see docs/clusters.md.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder on the head node, or s3:// or gs:// with one; ~/runs/NAME if not given.",
            show_default=False,
        ),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Where the run is brought to; runs/NAME if not given.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A cluster that runs already: its dashboard, as http://HOST:8265.", show_default=False),
    ] = None,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    max_failures: MaxFailures = None,
) -> None:
    """Draw a sweep on the cluster of its YAML: start or refresh it, follow the log, bring the run home."""
    from .sweep.submit import Submission, submit

    job = Submission(
        file,
        out=out,
        home=home,
        address=address,
        retry_failed=retry_failed,
        resume=resume,
        max_failures=1 if fail_fast else max_failures,
    )
    raise typer.Exit(submit(job, Console()))


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="Run folder of a sweep, such as runs/aspect, or its URI.", metavar="RUN")],
) -> None:
    """Tell what a sweep is at, from its run folder: while it draws, from any shell, or after it."""
    from .sweep.status import show_status

    show_status(run, Console())


@app.command()
def fetch(
    run: Annotated[str, typer.Argument(help="Where a sweep was drawn: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder for it; runs/ and the run's name if not given.", show_default=False)
    ] = None,
) -> None:
    """Bring a run home, finished or not; given again, only what is new."""
    from .sweep.fetch import fetch_run

    console = Console()
    folder, fetched = fetch_run(run, to, lambda line: console.print(line, soft_wrap=True, highlight=False))
    line = f"{folder}: {fetched.brought} files brought, {fetched.kept} there already"
    console.print(line, soft_wrap=True, highlight=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of sweeps, such as runs/aspect.", metavar="RUN...")],
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Also write a contact sheet of the first run, as entscale sheet does without options.",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="Also write what the runs show together into the section `study` of this document, such as "
            "docs/scenes.md, and its pictures beside it.",
            show_default=False,
        ),
    ] = None,
    calibrated: Annotated[
        Path | None,
        typer.Option(
            help="Also write what rule calibrated does in the runs into the section `calibrated` of this document.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of each run, one self-contained HTML file."""
    from .reports import write_calibrated, write_report, write_sheet, write_study

    if picture is not None:
        write_sheet(runs[0], picture)
    for run in runs:
        Console().print(f"report: {write_report(run)}", soft_wrap=True, highlight=False)
    if study is not None:
        write_study(runs, study)
        Console().print(f"study: {study}", soft_wrap=True, highlight=False)
    if calibrated is not None:
        write_calibrated(runs, calibrated)
        Console().print(f"calibrated: {calibrated}", soft_wrap=True, highlight=False)


@app.command()
def sheet(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    sizes: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, with commas; all if not given.", show_default=False)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas, such as original,entropy; all if not given.", show_default=False),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, or a file with one a line; may be given again.", show_default=False),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="With commas; all if not given.", show_default=False)] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Rows, the first ones. [default: 8; all with --prompts or --seeds]", show_default=False),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="height: all pictures of one height. pixels: a pixel as large in all.")
    ] = "height",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG, WebP or PDF to write.")] = Path("sheet.png"),
) -> None:
    """Write a contact sheet: a row a caption and seed, the methods side by side at each size."""
    from .caption_file import captions_of
    from .reports import write_sheet
    from .reports.sheet_choice import Choice, read_scaled

    choice = Choice(
        sizes=None if sizes is None else [parse_size(text) for text in sizes.split(",") if text.strip()],
        methods=methods,
        prompts=None if not prompts else [caption for source in prompts for caption in captions_of(source)],
        seeds=None if seeds is None else _seeds(seeds),
        count=count,
        scaled=read_scaled(scale),
    )
    Console().print(f"sheet: {write_sheet(run, out, choice)}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def rate(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    rater: Annotated[
        str | None, typer.Option(help="Who rates; the page asks for a name if not given.", show_default=False)
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="So many pairs, the same for all raters; all if not given.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines in, by a link with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
) -> None:
    """Serve a page on which people rate the pictures from 1 to 10, without being told what drew them."""
    from .reports.rate_command import rate

    console = Console()
    rate(
        run,
        rater=rater,
        host=host,
        port=port,
        pairs=pairs,
        say=lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
    )


@app.command()
def tables(
    run: Annotated[Path, typer.Argument(help="Run folder of a sweep, such as runs/aspect.", metavar="RUN")],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="What pictures are compared with: a folder of pictures, a Parquet file, or a run; its own pictures at "
            "the training size if not given.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Of a Parquet reference, the column with the pictures.")] = "image",
    form: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; printed if not given.", show_default=False)
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(help="Write them into a section of this document, such as docs/tables.md.", show_default=False),
    ] = None,
    section: Annotated[str, typer.Option(help="Of the document, the section.")] = "tables",
    only: Annotated[
        list[str] | None,
        typer.Option(help="A metric whose table is wanted, such as fid; may be given again.", show_default=False),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure scenes_patch_fid or patch_fid now, of the run's kept pictures above the training size, "
            "though its sweep did not ask for it; may be given again.",
            show_default=False,
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="For patch_fid, the file of Inception's weights; the run's if not given.", show_default=False
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Compile the programs of a run that did not record their memory, and keep what they need."
        ),
    ] = False,
) -> None:
    """Print a run's figures by size and method with their intervals, beside those that the paper prints."""
    from .reports.tables_command import Choice, write_section, write_tables

    if memory:
        from .sweep.memory import record_memory

        console = Console(stderr=True)
        record_memory(run, lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False))
    measured = {"measure": tuple(measure or ()), "inception": inception}
    choice = Choice(reference=reference, column=column, only=tuple(only or ()), **measured)
    if document is not None:
        write_section(run, document, choice, section=section, options=" --memory" if memory else "")
        return
    text = write_tables(run, choice, form=form)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


@app.command()
def entropy(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")],
    sizes: Annotated[str, typer.Option(help="WIDTHxHEIGHT of two token counts or more, with commas.")],
    rules: Annotated[
        str, typer.Option(help="With commas, such as entropy,fixed:0.8; original is always measured.")
    ] = "original,entropy",
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="A caption, or a file with one a line; may be given again.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Captions to draw. [default: all; 32 of the built-in model]", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance; 1 draws without it. [default: 7.5; 2 for scenes]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 8,
    train_size: TrainSize = None,
    out: Annotated[Path, typer.Option(help="Folder for values and figures.")] = Path("runs/entropy"),
    document: Annotated[
        Path | None,
        typer.Option(
            help="Also write section `entropy` of this document, such as docs/method.md, and its pictures beside it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the entropy of self-attention at many sizes: its line against log N, and what each rule brings back."""
    from .entropy_study import Plan, read_prompts
    from .reports.entropy_command import Job, run

    plan = Plan(
        sizes=tuple(parse_size(text) for text in sizes.split(",") if text.strip()),
        rules=tuple(_rule(text.strip()) for text in rules.split(",") if text.strip()),
        captions=read_prompts(prompts or (), count, model),
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch=batch,
    )
    command = shlex.join(["entscale", *sys.argv[1:]])
    job = Job(model=model, plan=plan, train_size=_size(train_size), out=out, document=document, command=command)
    run(job, Console(stderr=True))


@app.command()
def parity(
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")],
    model: Model = "scenes",
    steps: Annotated[int | None, typer.Option(help="Compare a run of DDIM of so many steps, too.")] = None,
    rules: Annotated[str, typer.Option(help="Rules to compare under, with commas.")] = "original,entropy",
    train_entropy: TrainEntropyFile = None,
    float64: Annotated[bool, typer.Option("--float64", help="Compute both sides in float64.")] = False,
    train_size: TrainSize = None,
) -> None:
    """Compare a model in PyTorch diffusers and here, module by module; exit code 1 where a bound is missed."""
    from .parity import compare, exit_status, print_table

    width_height = _size(size)
    with Console(stderr=True).status("comparing"):
        rows = compare(
            model,
            size=(width_height[1], width_height[0]),
            rules=[name.strip() for name in rules.split(",") if name.strip()],
            steps=steps,
            float64=float64,
            train_entropy=train_entropy,
            train_size=_size(train_size),
        )
    print_table(rows)
    raise typer.Exit(exit_status(rows))


@app.command()
def profile(
    model: Annotated[
        str, typer.Argument(help="A diffusers folder, a hub id, or scenes, the built-in model.")
    ] = "scenes",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the training size if not given.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 5,
    rule: Annotated[str, typer.Option(help="Of self-attention.")] = "entropy",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    out: Annotated[Path, typer.Option(help="A folder for the trace, which XProf and TensorBoard open.")] = Path(
        "runs/profile"
    ),
) -> None:
    """Draw one picture under JAX's profiler; print where its time goes, by module and by operation."""
    from .profiling import print_profile, profile_picture

    found = profile_picture(model, out, size=_size(size), steps=steps, rule=rule, dtype=dtype)
    print_profile(found, Console())
    print(f"trace: {out}")


@train_app.command("scenes")
def train_scenes(
    out: Annotated[Path, typer.Option(help="Diffusers folder to write, replaced as training goes on.")] = Path(
        "runs/scenes-model"
    ),
    checkpoints: Annotated[Path, typer.Option(help="Where checkpoints and log.jsonl are kept.")] = Path(
        "runs/train-scenes"
    ),
    config: Annotated[
        Path | None, typer.Option(help="YAML with fields of the recipe to change.", show_default=False)
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of an exported folder.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the diffusion stage; the recipe's if not given.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = True,
) -> None:
    """Train the built-in model: an autoencoder, then a UNet with its text encoder. Takes hours on two cores."""
    # One device a core: XLA runs many small operations of a training step on one core each.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
    from .scenes.recipe import Recipe
    from .scenes.recipe_file import read_recipe
    from .scenes.train import train_scenes

    recipe = Recipe() if config is None else read_recipe(config)
    if steps is not None:
        recipe = replace(recipe, diffusion_stage=replace(recipe.diffusion_stage, steps=steps))
    train_scenes(checkpoints, out, recipe=recipe, init=init, resume=resume)
    print(f"wrote {out}")


@train_app.command("scenes-metrics", hidden=True)
def train_scenes_metrics(
    out: Annotated[Path, typer.Option(help="Folder for extractor.safetensors and contrast.safetensors.")] = Path(
        "runs/scenes-metrics/out"
    ),
    checkpoints: Annotated[Path, typer.Option(help="Where checkpoints and log.jsonl are kept.")] = Path(
        "runs/scenes-metrics"
    ),
    part: Annotated[str | None, typer.Option(help="extractor or contrast; both if not given.")] = None,
) -> None:
    """Train the networks that measure scenes: scenes_fid, scenes_kid and scenes_clip."""
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")
    from .scenes.metric_stage import PARTS, train_metrics

    if part not in (None, *PARTS):
        raise UserError(f"--part {part!r} is unknown: give {' or '.join(PARTS)}")
    train_metrics(checkpoints, out, parts=PARTS if part is None else (part,))
    print(f"wrote {out}")


@overload
def _size(text: str) -> tuple[int, int]: ...
@overload
def _size(text: str | None) -> tuple[int, int] | None: ...
def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT."""
    if text is None:
        return None
    width, height = parse_size(text)
    return height, width


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r} is no list of whole numbers: write 0, or 0,1000") from None


def _rule(text: str) -> Scaling:
    """A rule's name; `fixed` with its multiplier of all levels, as fixed:0.8."""
    name, _, multiplier = text.partition(":")
    return Scaling.of(name, _multiplier(multiplier) if multiplier else 1.0)


def _multiplier(text: str) -> float | tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--multiplier {text!r} is no number: write 0.8, or one a level as 0.9,0.9,0.8,0.8") from None
    return values[0] if len(values) == 1 else values


if __name__ == "__main__":
    main()
