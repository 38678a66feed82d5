"""What the description of the check API cannot say: JSON Schema counts characters, the API bytes.

Strings within `maxLength` that are longer in UTF-8 are refused, and rightly: they are left out of
what must be accepted. (What is meant to be refused is not touched.)
"""

import schemathesis

BOUNDS = {"client_id": 256, "limit": 63, "backend": 63}


def fits(value):
    """Whether every bounded string of a body has as few bytes as it may have characters."""
    if isinstance(value, list):
        return all(fits(entry) for entry in value)
    if not isinstance(value, dict):
        return True
    return all(
        fits(entry)
        and not (
            name in BOUNDS
            and isinstance(entry, str)
            and len(entry) <= BOUNDS[name] < len(entry.encode("utf-8", "surrogatepass"))
        )
        for name, entry in value.items()
    )


@schemathesis.hook
def filter_body(context, body):
    return fits(body)
