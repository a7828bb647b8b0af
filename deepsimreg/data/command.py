"""`deepsimreg fetch`: the command that the data floor adds to the command line; light, so that `--help` is quick."""

import click


@click.command()
@click.argument("name")
@click.option("--url", help="Fetch the same archive from a mirror; the checksum is still checked.")
def fetch(name: str, url: str | None) -> None:
    """Fetch the dataset NAME, or the weights vgg16, to the data root: $DEEPSIMREG_DATA, else ./data."""
    from deepsimreg.data.fetch import fetch_dataset
    from deepsimreg.errors import DataError

    try:
        click.echo(f"{name} is ready in {fetch_dataset(name, url=url)}")
    except (DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
