"""The command `clerk-feed`: one file a subcommand, named like it."""

from importlib import import_module

import click

from app import __version__

COMMANDS = (
    "accept-shrink",
    "check",
    "cloudflare-ranges",
    "deletions",
    "demo",
    "design",
    "end-walks",
    "init",
    "probe",
    "refresh",
    "serve",
)


class _Commands(click.Group):
    """Imports a command when it is asked for: what `init` and `probe` need would delay the start of `serve`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"app.cli.{name}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="clerk-feed")
def main() -> None:
    """Serve a PostgreSQL catalog to Clerk.io's importer.

    Start with 'clerk-feed demo' to see it work on a sample catalog. For your own database run 'clerk-feed init', then
    'clerk-feed serve'.
    """
