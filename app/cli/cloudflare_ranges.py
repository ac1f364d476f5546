"""`clerk-feed cloudflare-ranges`: what `cloudflare` in trusted_proxies stands for, and how to renew it."""

import click

from app.access.cloudflare import SOURCES, ranges


@click.command(name="cloudflare-ranges")
def cloudflare_ranges() -> None:
    """Print the networks that "cloudflare" in trusted_proxies stands for, and how to renew them.

    The networks go to standard output, one a line, to be compared with what Cloudflare publishes now.
    """
    known = ranges()
    for network in known.networks:
        click.echo(str(network))
    click.echo(
        f"""
{len(known.networks)} networks, as Cloudflare published them on {known.published}. Compare them with what it publishes
now (no output: nothing is new):

  diff <(clerk-feed cloudflare-ranges 2>/dev/null | sort) \\
       <((curl -sf {SOURCES[0]}; echo; curl -sf {SOURCES[1]}) | sed '/^$/d' | sort)

A network that only Cloudflare lists: install a newer clerk-feed, or add it to access.trusted_proxies until then. A
network that only clerk-feed lists is no longer Cloudflare's: install a newer clerk-feed soon.""",
        err=True,
    )
