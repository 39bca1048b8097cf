"""Masker `roles`: train on the messages of chosen roles, including roles that the model never writes."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import sftrun


class RolesOptions(sftrun.Options):
    """The roles to train on."""

    roles: Annotated[
        list[Annotated[str, sftrun.Meta(min_length=1)]],
        sftrun.Meta(min_length=1, description="Roles such as assistant, user, system or tool."),
    ]


@sftrun.hookimpl
def register_maskers(register: sftrun.Register) -> None:
    register("roles", Roles, options=RolesOptions)


class Roles:
    """Put the loss on all text of the given roles; end-of-turn tokens only if the model generates them."""

    def __init__(self, options: RolesOptions) -> None:
        self.roles = frozenset(options.roles)

    def choose(self, spans: Sequence[sftrun.Span]) -> list[bool]:
        # Text of an assistant's message that is not generated belongs to the generation prompt.
        return [
            span.role in self.roles and span.message >= 0 and (span.generated or span.role != "assistant")
            for span in spans
        ]

    def check_prepared(self, recipe: sftrun.Recipe, run: sftrun.RunDir) -> Iterator[sftrun.Problem]:
        proof = run.read_json("prepared/proof.json")
        seen = {role for split in proof["splits"].values() for role in split["by_role"]} - {"template"}
        for role in sorted(self.roles - seen):
            hint = f"the data has {', '.join(sorted(seen))}"
            yield sftrun.Problem(f"no message has the role {role}", path=("masker", "with", "roles"), hint=hint)
