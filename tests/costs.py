"""Key-derivation costs that no policy may have, for known answers and for speed."""

from sqlalchemy_envelope import KdfProfile


def unchecked(memory: int, passes: int, lanes: int) -> KdfProfile:
    """A profile outside the bounds; the library offers no way to make one but its own cheap one."""
    profile = KdfProfile.unsafe_for_tests()
    for name, value in (("memory", memory), ("passes", passes), ("lanes", lanes)):
        object.__setattr__(profile, name, value)
    return profile
