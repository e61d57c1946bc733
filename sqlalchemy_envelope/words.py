"""English for messages: a counted noun, and the article of a name."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 row", "1,200 rows".

    Args:
        plural: the plural, if it is not the noun with an "s". A verb may be part of both: "owner has" and
            "owners have".
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def with_article(name: str) -> str:
    """A name after "a" or "an", by its first letter: "an Engine", "a Migrator"."""
    return f"{'an' if name[:1].lower() in tuple('aeio') else 'a'} {name}"
