"""The verbs on the pepper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.pepper import SlotPepper
from sqlalchemy_envelope.keys.providers.server import ServerKeyring
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.rotation.pepper_rotation import (
    PepperProgress,
    PepperRotation,
    check_rotation,
    owners_with_slots,
    pepper_use,
    rotate_steps,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession
    from sqlalchemy_envelope.orm.verbs.rotation.pepper_rotation import PepperUse
    from sqlalchemy_envelope.orm.verbs.steps import Steps


@emptying_class
class PepperVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on the pepper of secret slots."""

    def rotate_pepper(
        self, session: AnySession, owner_class: type[Any], *, batch: int = 1000
    ) -> PepperRotation:
        """Store each secret slot of a class under the active pepper: slots without a pepper, and slots under
        an older pepper. With `pepper_slots=False`, store each without a pepper. No owner and no secret is
        needed. Each turn of a loop over the result stores one batch and returns the progress, and the loop
        commits:

            for so_far in envelope.rotate_pepper(session, User):
                session.commit()

        Each batch takes two or three statements, and the memory of one batch. `rotate_pepper` never commits,
        and never waits for slots that another transaction holds: it skips them. A slot that was replaced
        meanwhile, by `change_secret` for example, stays as it is. A new run finds the remaining slots;
        `pepper_use` counts them.

        Args:
            session: a session of the job's own: between two batches its transaction ends.
            owner_class: the class of the owners.
            batch: the highest number of slots in one turn, and so in one transaction.

        Raises:
            ConfigurationError: no pepper is configured, or this is no class of key owners.
        """
        plain = plain_session(session)
        rotated = check_rotation(self._desk(plain), owner_class, batch)
        return PepperRotation(
            PepperProgress(),
            lambda so_far: self.run(rotate_steps(self._desk(plain), rotated, batch, so_far)),
        )

    def rotate_pepper_steps(
        self, session: Session, owner_class: type[Any], batch: int, so_far: PepperProgress
    ) -> Steps[PepperProgress | None]:
        """The steps of one batch of `rotate_pepper`."""
        desk = self._desk(session)
        return rotate_steps(desk, check_rotation(desk, owner_class, batch), batch, so_far)

    def pepper_use(self, session: AnySession, owner_class: type[Any]) -> PepperUse:
        """Count the secret slots of a class by the pepper that they are stored under. One query, which reads
        the table of slots, and no key is needed.

        A pepper can be retired when no slot of any class is under it, and when no backup that may be restored
        holds such a slot.

        Raises:
            ConfigurationError: this is no class of key owners.
        """
        found = owners_with_slots(owner_class, "pepper_use")
        return pepper_use(self._desk(plain_session(session)), found)


def checked_pepper(pepper: Any, *, adds: bool) -> SlotPepper:
    """Return the layer around secret slots, of peppers checked to be a `ServerKeyring`.

    Raises:
        ConfigurationError: the peppers are something else, or there is none to be kept out of new slots.
    """
    if pepper is not None and not isinstance(pepper, ServerKeyring):
        raise ConfigurationError(
            f"Envelope(pepper=...) takes a ServerKeyring, not a {type(pepper).__name__}: "
            "ServerKeyring.from_environment('ENVELOPE_PEPPER') for example."
        )
    if pepper is None and not adds:
        raise ConfigurationError(
            "pepper_slots=False keeps a pepper out of new slots, and there is no pepper."
        )
    return SlotPepper(pepper, adds=adds)
