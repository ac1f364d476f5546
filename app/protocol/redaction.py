"""URLs as they may be shown: what stands before the host may be a password."""

import re


def redacted(url: str) -> str:
    """A URL without user and password.

    A password typed with a / ? or # in it looks like a port and a path: then everything before the last @ is hidden,
    rather too much than too little.
    """
    hidden = re.sub(r"^([a-z+.-]+:)?(//)?[^/?#]*@", r"\1//…@", url, flags=re.IGNORECASE)
    if hidden == url:
        hidden = re.sub(r"^([a-z+.-]+:)?(//)[^/?#@]*:[^@].*@", r"\1//…@", url, flags=re.IGNORECASE | re.DOTALL)
    return hidden
