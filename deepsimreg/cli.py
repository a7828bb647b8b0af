"""The command line: `deepsimreg register MOVING FIXED --out DIR`, apply, evaluate, models, and what other floors add.

Commands import what they need when they run, so that `--help` is quick.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path

import click

from deepsimreg import __version__
from deepsimreg.losses.registry import SIMILARITIES

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(exists=True, path_type=Path)
EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError, ImportError)  # what a user can mend


def show(result: dict, as_json: bool) -> None:
    """A result for a person, or for a program."""
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


class Commands(click.Group):
    """This module's commands, and those that the entry points "deepsimreg.commands" name.

    An error that a user can mend ends any of them with one line and exit code 1, without a traceback.
    """

    def invoke(self, context: click.Context) -> object:
        try:
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


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Image registration with semantic similarity (DeepSim)."""


@main.command()
@click.argument("moving", type=FILE)
@click.argument("fixed", type=FILE)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results.")
@click.option("--similarity", default="ncc", show_default=True, help=f"{', '.join(SIMILARITIES)}; or a sum of them.")
@click.option(
    "--lam", type=float, help="Weight λ of the mean squared derivatives, mm per mm; default: the similarity's."
)
@click.option("--network", help="Registration network to start from: a pretrained name or a weight file.")
@click.option("--extractor", help="For DeepSim: a pretrained dataset, or the weight file of an extractor.")
@click.option("--steps", type=click.IntRange(0), help="Of each level; 0 with --network: the network alone.")
@click.option("--affine", type=click.Choice(["rigid", "affine"]), help="Align the images by that first.")
@click.option("--labels", type=FILE, help="Labels of the moving image, to be carried along.")
@click.option("--fixed-labels", type=FILE, help="Labels of the fixed image: Dice is measured.")
@click.option("--device", help="cpu or cuda; by default a GPU if there is one.")
@click.option("--report", type=click.Path(path_type=Path), help="One page to look at: .png, .pdf or .html.")
@JSON
def register(moving, fixed, out, labels, fixed_labels, report, as_json, **options) -> None:
    """Pull MOVING onto FIXED; write moved.nii.gz, and field.nii.gz for ITK, ANTs and Slicer, to --out.

    \b
    deepsimreg register moving.nii.gz fixed.nii.gz --out result
    deepsimreg register moving.nii.gz fixed.nii.gz --out result \\
        --similarity "deepsim-seg + ncc" --extractor hippocampus-mr
    deepsimreg register moving.nii.gz fixed.nii.gz --out result \\
        --network hippocampus-mr/registration --steps 0
    """
    from deepsimreg.files import check_writable
    from deepsimreg.registration import register as run_registration
    from deepsimreg.report import check_report, write_report

    if fixed_labels is not None and labels is None:
        raise click.UsageError("--fixed-labels needs --labels, those of the moving image")
    check_writable(out)
    if report is not None:
        check_report(report)
    given = None if labels is None else (labels, fixed_labels) if fixed_labels is not None else labels
    result = run_registration(moving, fixed, labels=given, progress=not as_json, **options)
    written = result.save(out) + ([write_report(result, report)] if report is not None else [])
    show(dict(result.metrics) | {"seconds": result.seconds["total"], "files": [str(path) for path in written]}, as_json)


@main.command()
@click.argument("field", type=FILE)
@click.argument("image", type=FILE)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The warped image.")
@click.option("--labels", is_flag=True, help="IMAGE holds labels: take the nearest voxel.")
@click.option("--learn2reg", is_flag=True, help="Write FIELD, in voxels of IMAGE, as Learn2Reg's disp_*.nii.gz.")
def apply(field, image, out, labels, learn2reg) -> None:
    """Pull IMAGE through FIELD, of ITK or Learn2Reg (disp_*.nii.gz), onto the grid of the field.

    \b
    deepsimreg apply result/field.nii.gz moving_labels.nii.gz --labels --out moved_labels.nii.gz
    deepsimreg apply result/field.nii.gz moving.nii.gz --learn2reg --out disp_0201_0260.nii.gz
    """
    from deepsimreg.files import check_writable
    from deepsimreg.image import as_image, field_positions
    from deepsimreg.io import write_image
    from deepsimreg.learn2reg import read_disp, write_disp
    from deepsimreg.warps import sample_image, sample_labels

    check_writable(out.parent)
    source = as_image(image, "image")
    if learn2reg:
        write_disp(out, *read_disp(field, source.affine))
        click.echo(out)
        return
    place, affine = field_positions(field, source)
    sample = sample_labels if labels else sample_image
    values = sample(source.data if labels else source.data.float(), place)
    write_image(out, values[0, 0].numpy(), affine=affine)
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
    from deepsimreg.image import as_image, check_same_grid
    from deepsimreg.itk import read_field
    from deepsimreg.metrics import indexed_labels, label_metrics, smoothness

    moved, fixed = as_image(moved_labels, "moved labels"), as_image(fixed_labels, "fixed labels")
    check_same_grid(moved, fixed)
    a, b, classes = indexed_labels(moved.data, fixed.data)
    result = label_metrics(a, b, classes, fixed.spacing)
    if field is not None:
        result |= smoothness(read_field(field))
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
