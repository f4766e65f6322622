"""LoKA's Mods: changes of a model that make low precision safe and its layers fast, each reported, each undone."""

from octavo.loka.mods.apply import apply, changes, names, undo
from octavo.loka.mods.record import Change

__all__ = ["Change", "apply", "changes", "names", "undo"]
