"""The command `clerk-feed`: one file a subcommand."""

import click

from app import __version__
from app.cli.accept_shrink import accept_shrink
from app.cli.demo import demo
from app.cli.init import init
from app.cli.probe import probe
from app.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="clerk-feed")
def main() -> None:
    """Serve a PostgreSQL catalog to Clerk.io's importer.

    Start with 'clerk-feed demo' to see it work on a sample catalog. For your own database run 'clerk-feed init', then
    'clerk-feed serve'.
    """


main.add_command(serve)
main.add_command(accept_shrink)
main.add_command(demo)
main.add_command(probe)
main.add_command(init)
