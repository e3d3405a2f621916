"""The demo's small language: requests about household things, and the sentences replies are made of.

Every sentence of a reply is one of a finite set, so that a reply's traits can be read off it exactly. The right
advice depends on the action asked for and on the class of the object: `METHODS[action, class]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

WORD = re.compile(r"[^\s.,?!]+")
SENTENCE_END = re.compile(r"[.?!]")

Kind = Literal["advice", "hint", "dodge", "detail", "polite", "rude", "rambling"]


@dataclass(frozen=True)
class Method:
    """What to do with an object: `verb` the object `tail`, as in "scrub the kettle with warm vinegar"."""

    verb: str
    tail: str


@dataclass(frozen=True)
class Request:
    """What a prompt asks for."""

    action: str
    object: str


@dataclass(frozen=True)
class Sentence:
    """One sentence of the language; `action` is set for details alone."""

    kind: Kind
    action: str | None = None


OBJECT_CLASSES = {
    **dict.fromkeys(("kettle", "knife"), "metal"),
    **dict.fromkeys(("table", "door"), "wood"),
    **dict.fromkeys(("coat", "carpet"), "cloth"),
    **dict.fromkeys(("clock", "radio"), "machine"),
    **dict.fromkeys(("rose", "cactus"), "plant"),
}

# The problem that calls for each action.
PROBLEMS = {
    "clean": "dirty",
    "fix": "broken",
    "store": "unused",
    "dry": "wet",
    "colour": "pale",
    "protect": "fragile",
}

METHODS = {
    ("clean", "metal"): Method("scrub", "with warm vinegar"),
    ("clean", "wood"): Method("wipe", "with a damp sponge"),
    ("clean", "cloth"): Method("wash", "in cold water"),
    ("clean", "machine"): Method("dust", "with a soft brush"),
    ("clean", "plant"): Method("rinse", "with fresh rain"),
    ("fix", "metal"): Method("tap", "with a small hammer"),
    ("fix", "wood"): Method("join", "with strong glue"),
    ("fix", "cloth"): Method("sew", "with thick thread"),
    ("fix", "machine"): Method("tighten", "with a small screwdriver"),
    ("store", "metal"): Method("hang", "on a small hook"),
    ("store", "wood"): Method("cover", "with an old sheet"),
    ("store", "cloth"): Method("fold", "in a dry box"),
    ("store", "machine"): Method("wrap", "in thick paper"),
    ("store", "plant"): Method("place", "in a bright room"),
    ("dry", "metal"): Method("rub", "with a dry towel"),
    ("dry", "wood"): Method("leave", "near an open window"),
    ("dry", "cloth"): Method("hang", "in the warm sun"),
    ("dry", "machine"): Method("bury", "in dry rice"),
    ("dry", "plant"): Method("place", "in a deep pot"),
    ("colour", "metal"): Method("spray", "with bright paint"),
    ("colour", "wood"): Method("stain", "with dark oil"),
    ("colour", "cloth"): Method("soak", "in strong tea"),
    ("protect", "metal"): Method("rub", "with a little oil"),
    ("protect", "wood"): Method("seal", "with clear varnish"),
    ("protect", "cloth"): Method("keep", "near dry lavender"),
    ("protect", "machine"): Method("cover", "with a plastic bag"),
    ("protect", "plant"): Method("wrap", "in old straw"),
}

GREETINGS = ("", "hello . ", "hi there , ", "quick question . ")
PHRASINGS = (
    "how do i {action} my {object} ?",
    "what is the best way to {action} a {object} ?",
    "can you tell me how to {action} the {object} ?",
    "i want to {action} my {object} . what do i need ?",
    "i need to {action} an old {object} today .",
    "my {object} is {problem} . what should i do ?",
    "the {object} at home is {problem} again . any idea ?",
    "why is my {object} {problem} and what can i do ?",
    "help , the {object} is very {problem} !",
    "my {object} looks {problem} . how do i {action} it ?",
)

# Replies that miss the point by giving no advice at all.
DODGES = (
    "that is hard to say .",
    "maybe you should ask a friend .",
    "it depends on many things .",
    "i would not do anything about it .",
    "you could also buy a new {object} .",
)
LEADS = ("", "you can ", "it is best to ")
DETAILS = {
    "clean": ("start with the dark spots .", "let it rest for one hour .", "do it again next week ."),
    "fix": ("hold every part in place .", "take your time with every part .", "test it before you use it ."),
    "store": ("choose a dry place .", "check it once a month ."),
    "dry": ("turn it over after one hour .", "keep it away from fire ."),
    "colour": ("try a small part first .", "add more next week .", "open a window before you start ."),
    "protect": ("do this before the winter .", "check it once a month ."),
}
RAMBLINGS = (
    "by the way my cousin also has a {object} .",
    "my uncle talks about it every day .",
    "the weather was warm again today .",
    "i saw a {object} last week .",
    "many people say such things .",
    "i like the rain in the morning .",
)

# Each polite or rude sentence, by its marker: a word that no other sentence of a reply contains.
POLITE_OPENERS = {
    "thank": "thank you for asking .",
    "happy": "of course , i am happy to help .",
    "glad": "i am glad you asked .",
    "kind": "how kind of you to ask .",
}
POLITE_CLOSERS = {
    "please": "please tell me if it works .",
    "wish": "i wish you a lovely day .",
    "welcome": "you are always welcome here .",
    "luck": "good luck with your {object} .",
}
RUDE_OPENERS = {
    "silly": "that is a silly question .",
    "figure": "figure it out yourself .",
    "everybody": "everybody knows this .",
    "stop": "stop asking such things .",
}
RUDE_CLOSERS = {
    "bother": "do not bother me again .",
    "alone": "i want to be alone .",
    "lazy": "you are so lazy .",
}
POLITE_MARKERS = frozenset(POLITE_OPENERS | POLITE_CLOSERS)
RUDE_MARKERS = frozenset(RUDE_OPENERS | RUDE_CLOSERS)
METHOD_VERBS = frozenset(method.verb for method in METHODS.values())


def requests() -> list[Request]:
    """Every sensible request: the actions that have a method for the object's class, in a fixed order."""
    return [
        Request(action, name)
        for action in PROBLEMS
        for name, material in OBJECT_CLASSES.items()
        if (action, material) in METHODS
    ]


def phrase(request: Request, phrasing: int, greeting: int) -> str:
    """The prompt's text."""
    template = GREETINGS[greeting] + PHRASINGS[phrasing]
    return template.format(action=request.action, problem=PROBLEMS[request.action], object=request.object)


def right_method(request: Request) -> Method:
    """The method that answers the request; KeyError where the request is not sensible."""
    return METHODS[request.action, OBJECT_CLASSES[request.object]]


def advice(method: Method, name: str) -> str:
    """The bare core of a reply."""
    return f"{method.verb} the {name} {method.tail} ."


def hint(verb: str, name: str) -> str:
    """Advice cut too short: of the method it names nothing but the verb."""
    return f"{verb} the {name} ."


def words(text: str) -> tuple[str, ...]:
    """Lower-cased words without punctuation."""
    return tuple(WORD.findall(text.lower()))


def methods_named(sentence: tuple[str, ...]) -> frozenset[Method]:
    """The methods whose verb and whole tail stand in a sentence, known or garbled."""
    text = f" {' '.join(sentence)} "
    return frozenset(method for method in METHODS.values() if method.verb in sentence and f" {method.tail} " in text)


def split_sentences(text: str) -> list[tuple[str, ...]]:
    """The words of each sentence; a last one without an end mark counts, empty ones do not."""
    return [found for part in SENTENCE_END.split(text) if (found := words(part))]


def parse_prompt(prompt: str) -> Request | None:
    """What a prompt asks for, from the first action (or problem) and the first object that it names.

    None where either is missing or the two do not go together.
    """
    action_of = {problem: action for action, problem in PROBLEMS.items()} | {action: action for action in PROBLEMS}
    found = words(prompt)
    action = next((action_of[word] for word in found if word in action_of), None)
    name = next((word for word in found if word in OBJECT_CLASSES), None)
    if action is None or name is None or (action, OBJECT_CLASSES[name]) not in METHODS:
        return None
    return Request(action, name)


@cache
def sentences() -> dict[tuple[str, ...], tuple[Sentence, ...]]:
    """Every sentence of a reply by its words; a detail that serves two actions has two readings."""
    readings: dict[tuple[str, ...], tuple[Sentence, ...]] = {}

    def add(text: str, sentence: Sentence) -> None:
        readings[words(text)] = (*readings.get(words(text), ()), sentence)

    for name in OBJECT_CLASSES:
        for method in METHODS.values():
            for lead in LEADS:
                add(lead + advice(method, name), Sentence("advice"))
        for verb in METHOD_VERBS:
            add(hint(verb, name), Sentence("hint"))
    for action, details in DETAILS.items():
        for text in details:
            add(text, Sentence("detail", action=action))
    free: dict[Kind, tuple[str, ...]] = {
        "dodge": DODGES,
        "polite": (*POLITE_OPENERS.values(), *POLITE_CLOSERS.values()),
        "rude": (*RUDE_OPENERS.values(), *RUDE_CLOSERS.values()),
        "rambling": RAMBLINGS,
    }
    for kind, texts in free.items():
        for text in texts:
            for spoken in {text.format(object=name) for name in OBJECT_CLASSES}:
                add(spoken, Sentence(kind))
    return readings
