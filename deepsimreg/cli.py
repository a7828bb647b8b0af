"""The command line: `deepsimreg register MOVING FIXED --out DIR`, apply, evaluate, models, and what other floors add.

Commands import what they need when they run, so that `--help` is quick.
"""

import json
import math
from importlib.metadata import entry_points
from pathlib import Path

import click

from deepsimreg import __version__
from deepsimreg.errors import unlogged
from deepsimreg.files import OUTPUTS
from deepsimreg.losses.registry import DEFAULT, SIMILARITIES


class HomePath(click.Path):
    """A path, in which ~ is the user's home where no shell has expanded it."""

    def convert(self, value, param, context):
        return super().convert(Path(value).expanduser(), param, context)


FILE = HomePath(exists=True, dir_okay=False, path_type=Path)
PATH = HomePath(exists=True, path_type=Path)
EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError, ImportError)  # what a user can mend


def show(result: dict, as_json: bool) -> None:
    """A result for a person, or for a program."""
    if as_json:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}
        click.echo(json.dumps(finite, allow_nan=False))
        return
    for name, value in result.items():
        click.echo(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


class Commands(click.Group):
    """This module's commands, and those that the entry points "deepsimreg.commands" name.

    An error that a user can mend ends any of them with one line and exit code 1, without a traceback.
    """

    def invoke(self, context: click.Context) -> object:
        try:
            with unlogged():
                return super().invoke(context)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):  # click's own ways to end
            raise
        except EXPECTED as error:
            raise click.ClickException(" ".join(str(error).split()) or type(error).__name__) from error

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *entry_points(group="deepsimreg.commands").names})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        found = entry_points(group="deepsimreg.commands", name=name)
        return next(iter(found)).load() if found else super().get_command(context, name)


class Numbers(click.ParamType):
    """Numbers between commas."""

    name = "numbers"

    def convert(self, value, param, context):
        try:
            return value if isinstance(value, tuple) else tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} holds no numbers: write 0.5,0.5")


class Names(click.ParamType):
    """Some of these names, between commas."""

    name = "names"

    def __init__(self, known):
        self.known = known

    def convert(self, value, param, context):
        names = value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))
        unknown = [name for name in names if name not in self.known]
        return self.fail(f"{', '.join(unknown)} is unknown: choose of {', '.join(self.known)}") if unknown else names


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Image registration with semantic similarity (DeepSim)."""


OUT = click.option(
    "--out",
    type=HomePath(file_okay=False, path_type=Path),
    required=True,
    help="Folder of results; those of an earlier run give way.",
)
OPTIONS = (
    click.option(
        "--similarity", default=DEFAULT, show_default=True, help=f"{', '.join(SIMILARITIES)}; or a sum of them."
    ),
    click.option(
        "--lam", type=float, help="Weight λ of the mean squared derivatives, mm per mm; default: the similarity's."
    ),
    click.option("--network", help="Registration network to start from: a pretrained name or a weight file."),
    click.option("--extractor", help="For DeepSim: a pretrained dataset, a weight file, or a TorchScript file (.pt)."),
    click.option("--extractor-channels", type=click.IntRange(1), default=1, help="Of a TorchScript file's input."),
    click.option(
        "--extractor-multiple", type=click.IntRange(1), default=1, help="Of voxels, that its input must have."
    ),
    click.option("--steps", type=click.IntRange(0), help="Of each level; 0 with --network: the network alone."),
    click.option("--affine", type=click.Choice(["rigid", "affine"]), help="Align the images by that first."),
    click.option("--spacing", type=Numbers(), help="mm, as 0.5,0.5: of arrays, PNG and TIFF, in place of its tags."),
    click.option("--channel", type=int, help="Of files that hold several, from 0."),
    click.option("--page", type=int, help="Of a time series, or of a stack of which one plane is meant, from 0."),
    click.option("--landmark-weight", type=float, default=0.1, show_default=True, help="Of their squared distance."),
    click.option("--fill", type=float, help="Grey value outside the moving image; default: its lowest."),
    click.option("--background", type=int, default=0, show_default=True, help="Label outside, and not scored."),
    click.option("--device", help="cpu or cuda; by default a GPU if there is one."),
    click.option("--outputs", type=Names(OUTPUTS), default=",".join(OUTPUTS), show_default=True, help="What to write."),
)


def registering(command):
    """Give a command the options of `register`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@main.command()
@click.argument("moving", type=FILE)
@click.argument("fixed", type=FILE)
@OUT
@registering
@click.option("--start", multiple=True, help="Field or affine of any tool to go on from; several: as for apply.")
@click.option("--labels", type=FILE, help="Labels of the moving image, to be carried along.")
@click.option("--fixed-labels", type=FILE, help="Labels of the fixed image: Dice is measured.")
@click.option("--moving-mask", type=FILE, help="Voxels of the moving image that count are more than 0.")
@click.option("--fixed-mask", type=FILE, help="The same of the fixed image.")
@click.option("--landmarks", type=FILE, nargs=2, help="Points that should meet, as for apply: of MOVING, and of FIXED.")
@click.option("--also", type=FILE, nargs=2, multiple=True, help="A further channel, on the grids of MOVING and FIXED.")
@click.option("-v", "--verbose", is_flag=True, help="Also the seconds of each step, and the peak memory.")
@click.option("--channel-weights", type=Numbers(), help="As 1,0.5: of MOVING and FIXED, and of each --also.")
@click.option("--report", type=HomePath(path_type=Path), help="One page to look at: .png, .pdf or .html.")
@JSON
def register(moving, fixed, out, start, outputs, report, also, landmarks, as_json, **options) -> None:
    """Pull MOVING onto FIXED; write moved.nii.gz, field.nii.gz for ITK, ANTs and Slicer, its inverse and more to --out.

    Images: NIfTI, TIFF, NRRD, MetaImage, MGH, PNG. folds, sd_log_jacobian and jacobian.nii.gz are of the deformation,
    without the affine pre-alignment.

    \b
    deepsimreg register moving.nii.gz fixed.nii.gz --out result
    deepsimreg register moving.nii.gz fixed.nii.gz --out result \\
        --similarity "deepsim-seg + ncc" --extractor hippocampus-mr
    deepsimreg register moving.nii.gz fixed.nii.gz --out result \\
        --network hippocampus-mr/registration --steps 0
    """
    from deepsimreg.batch import FILES, LANDMARKS, register_files

    files = {name: options.pop(name) for name in FILES[2:]}
    if files["fixed_labels"] is not None and files["labels"] is None:
        raise click.UsageError("--fixed-labels needs --labels, those of the moving image")
    if options["channel_weights"] and len(options["channel_weights"]) != 1 + len(also):
        raise click.UsageError("--channel-weights: give one for MOVING and FIXED, and one for each --also")
    files |= {"moving": [moving, *(pair[0] for pair in also)], "fixed": [fixed, *(pair[1] for pair in also)]}
    files |= {"start": start or None} | dict(zip(LANDMARKS, landmarks or (), strict=False))
    show(register_files(files, out, outputs, report, progress=not as_json, **options), as_json)


@main.command()
@click.argument("pairs", type=FILE)
@OUT
@registering
@click.option("--report", type=click.Choice(["html", "pdf", "png"]), help="One page to look at of each pair.")
def batch(pairs, out, outputs, report, **options) -> None:
    """Register every pair of PAIRS, a CSV file with the columns moving and fixed, into folders of --out.

    Further columns may be name, labels, fixed_labels, moving_mask, fixed_mask, moving_landmarks, fixed_landmarks and
    start (one file, not inverted), as the options of register. Paths are relative to the file. results.csv has a row
    for each pair; a run that was ended goes on where it was, and a pair whose files have changed is registered again.

    \b
    deepsimreg batch pairs.csv --out results --similarity mind
    """
    from deepsimreg.batch import register_pairs

    click.echo(register_pairs(pairs, out, outputs, report, **options))


@main.command()
@click.argument("transforms", nargs=-1, required=True, metavar="TRANSFORM... IMAGE")
@click.option("--out", type=HomePath(dir_okay=False, path_type=Path), required=True, help="The result.")
@click.option("--labels", is_flag=True, help="IMAGE holds labels: take the nearest voxel.")
@click.option("--reference", type=FILE, help="The result lies on the grid of this image; default: of the first field.")
@click.option("--fill", type=float, help="Grey value outside IMAGE; default: its lowest.")
@click.option("--background", type=int, default=0, show_default=True, help="Label outside IMAGE.")
@click.option(
    "--voxels", type=FILE, nargs=2, help="Points are voxels of the first image and become those of the second."
)
@click.option("--learn2reg", is_flag=True, help="Write TRANSFORM, in voxels of IMAGE, as Learn2Reg's disp_*.nii.gz.")
@click.option("--channel", type=int, help="Of an IMAGE that holds several, from 0.")
@click.option("--page", type=int, help="Of a time series, or of a stack of which one plane is meant, from 0.")
def apply(transforms, out, labels, reference, fill, background, voxels, learn2reg, channel, page) -> None:
    """Pull IMAGE through transforms, or send the points of a CSV file through them.

    TRANSFORM: displacement fields, and affines (.mat, .txt, .tfm) of any tool that writes ITK's, or Learn2Reg's
    disp_*.nii.gz; inverse:FILE is the inverse. As in ANTs the first acts first on a point. They take points of the
    fixed image to the moving image, and pull the moving image onto the fixed one. So points (columns x, y, z; mm, LPS)
    that were marked in the fixed image go through the field, and points of the moving image through the inverse field.

    \b
    deepsimreg apply result/field.nii.gz moving_labels.nii.gz --labels --out moved_labels.nii.gz
    deepsimreg apply result/field.nii.gz fixed_points.csv --out moving_points.csv
    deepsimreg apply result/inverse_field.nii.gz moving_points.csv --out fixed_points.csv
    deepsimreg apply second.nii.gz inverse:first.mat image.nii.gz --out moved.nii.gz --reference fixed.nii.gz
    deepsimreg apply result/field.nii.gz moving.nii.gz --learn2reg --out disp_0201_0260.nii.gz
    """
    import numpy as np

    from deepsimreg.apply import apply_to_image, apply_to_points, displacement_of, reference_grid
    from deepsimreg.files import check_writable
    from deepsimreg.image import as_image, as_labels
    from deepsimreg.learn2reg import write_disp

    *names, image = transforms
    if not names:
        raise click.UsageError("give transforms, and then the image or the points")
    check_writable(out.parent)
    points = Path(image).suffix.lower() == ".csv"
    if points != (out.suffix.lower() == ".csv"):
        raise click.UsageError(f"--out is {out}: points are written as .csv, images as images")
    if points and (labels or learn2reg or any(one is not None for one in (reference, fill, channel, page))):
        raise click.UsageError("points take no options of images: leave them out")
    if voxels and not points:
        raise click.UsageError("--voxels is for points")
    if points:
        grids = tuple(as_image(path, "image").grid for path in voxels) if voxels else None
        click.echo(f"{out}: {apply_to_points(image, names, out, grids)} points")
        return
    source = (as_labels if labels else as_image)(image, "image", channel=channel, page=page)
    if learn2reg:
        grid = reference_grid(names) if reference is None else as_image(reference, "reference").grid
        write_disp(out, displacement_of(names, grid, source.grid, np.eye(grid.ndim + 1)), grid)
    else:
        apply_to_image(source, names, out, labels, reference, fill, background)
    click.echo(out)


@main.command()
@click.argument("moved_labels", type=PATH)
@click.argument("fixed_labels", type=PATH)
@click.option("--field", type=PATH, help="The displacement field: folds and SD log J are measured, too.")
@click.option(
    "--learn2reg", is_flag=True, help="The challenge's numbers, of the moving image's own labels and --field."
)
@JSON
def evaluate(moved_labels, fixed_labels, field, learn2reg, as_json) -> None:
    """Overlap and surface distance of MOVED_LABELS and FIXED_LABELS, on one grid.

    folds and sd_log_jacobian are of the deformation in --field: its affine part changes neither.

    With --learn2reg the labels that --field moves, and those of the fixed image; or folders of labels and of fields.

    \b
    deepsimreg evaluate result/moved_labels.nii.gz fixed_labels.nii.gz --field result/field.nii.gz --json
    deepsimreg evaluate moving_labels.nii.gz fixed_labels.nii.gz --field disp_0201_0260.nii.gz --learn2reg
    deepsimreg evaluate labelsTr labelsTr --field submission --learn2reg
    """
    if learn2reg:
        from deepsimreg.learn2reg import evaluate_fields

        if field is None:
            raise click.UsageError("--learn2reg needs --field, the displacement")
        show(evaluate_fields(field, moved_labels, fixed_labels), as_json)
        return
    from dataclasses import replace

    from deepsimreg.image import as_labels, check_same_grid
    from deepsimreg.learn2reg import read_disp
    from deepsimreg.metrics import indexed_labels, label_metrics, smoothness

    moved, fixed = as_labels(moved_labels, "moved labels"), as_labels(fixed_labels, "fixed labels")
    check_same_grid(moved, fixed)
    a, b, classes = indexed_labels(moved.data, fixed.data)
    result = label_metrics(a, b, classes, fixed.spacing)
    if field is not None:
        displacement, grid = read_disp(field)
        check_same_grid(replace(fixed, grid=grid, data=displacement, name=str(field)), fixed)
        result |= smoothness(displacement)
    show(result, as_json)


@main.command()
@JSON
def models(as_json) -> None:
    """The pretrained networks that come with the package."""
    from deepsimreg.pretrained import pretrained

    known = pretrained()
    if as_json:
        click.echo(json.dumps(known))
        return
    if not known:
        click.echo("none comes with this version; a weight file of your own does as well", err=True)
    for name, card in known.items():
        click.echo(f"{name:32s} {card['what']}")


if __name__ == "__main__":
    main()
