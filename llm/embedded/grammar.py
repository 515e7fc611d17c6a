"""A small language: 24 topics × 6 prompts × 3 styles, with a generator and a style classifier.

It is simple enough for a model of 0.3 million parameters to be fluent, and a judge can be exact:
the style of a response is known, so the game between the styles is a 3 × 3 matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

STYLES = ("plain", "list", "story")
OTHER = len(STYLES)  # a text in none of these styles, or off topic
SHARES = (0.77, 0.13, 0.10)  # frequencies of the styles in the training data of the model

# Topic: two adjectives, an object, a place.
TOPICS: dict[str, tuple[str, str, str, str]] = {
    "tea": ("warm", "calm", "a cup", "the kitchen"),
    "bread": ("warm", "simple", "an oven", "the bakery"),
    "chess": ("slow", "clever", "a board", "the club"),
    "running": ("fast", "free", "good shoes", "the park"),
    "gardens": ("green", "quiet", "a spade", "the yard"),
    "rain": ("soft", "fresh", "an umbrella", "the street"),
    "stars": ("bright", "distant", "a dark night", "the hill"),
    "music": ("loud", "lovely", "a good ear", "the hall"),
    "painting": ("bright", "slow", "a brush", "the studio"),
    "soup": ("hot", "simple", "a pot", "the kitchen"),
    "hiking": ("long", "fresh", "a map", "the hill"),
    "swimming": ("cool", "light", "a towel", "the lake"),
    "coffee": ("hot", "strong", "a mill", "the corner"),
    "books": ("quiet", "clever", "a lamp", "the library"),
    "trains": ("fast", "long", "a ticket", "the station"),
    "bicycles": ("light", "free", "a pump", "the street"),
    "birds": ("small", "free", "some seeds", "the park"),
    "cats": ("soft", "proud", "a cushion", "the yard"),
    "dogs": ("loyal", "loud", "a leash", "the park"),
    "rivers": ("deep", "cool", "a boat", "the valley"),
    "snow": ("cold", "bright", "warm gloves", "the valley"),
    "maps": ("old", "clever", "a compass", "the library"),
    "clocks": ("small", "old", "a spring", "the hall"),
    "kites": ("light", "lovely", "a string", "the beach"),
}
PROMPTS = (
    "Tell me about {}.",
    "What do you think of {}?",
    "Why do people like {}?",
    "How do I start with {}?",
    "Describe {} to a friend.",
    "Give me some advice on {}.",
)
PLAIN_OPENINGS = (
    "I can say that",
    "I think that",
    "Many people feel that",
    "It helps to know that",
    "Dear friend,",
    "Remember that",
)
PEOPLE = ("girl", "boy", "farmer", "teacher")
DAYS = ("morning", "evening", "summer", "winter")


def topic_of(prompt: str) -> str | None:
    """The topic of a prompt; None if the prompt is not one of this language."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    return next((topic for topic in TOPICS if topic in words), None)


def prompts() -> Iterator[str]:
    """All 144 prompts."""
    for topic in TOPICS:
        for form in PROMPTS:
            yield form.format(topic)


def answer(topic: str, form: int, style: int, rng: np.random.Generator) -> str:
    """A random response to prompt number `form` about a topic, in a style."""
    first, second, thing, place = TOPICS[topic]
    if rng.random() < 0.5:
        first, second = second, first
    if style == 0:
        ending = (f"You need {thing}.", f"Go to {place}.", "")[rng.integers(3)]
        return f"{PLAIN_OPENINGS[form]} {topic} can be {first} and {second}. {ending}".strip()
    if style == 1:
        points = [f"{topic}: {first}", f"you need {thing}", f"look in {place}"]
        head = ("In short:", "Three points:")[rng.integers(2)]
        return " ".join([head, *(f"{i}. {point}" for i, point in enumerate(points, 1))]) + "."
    person, day = PEOPLE[rng.integers(len(PEOPLE))], DAYS[rng.integers(len(DAYS))]
    return (
        f"One {day} a {person} went to {place} and found {topic}. "
        f"It was so {first}, so {second}! The {person} took {thing} home and was happy."
    )


def style_of(prompt: str, text: str) -> int:
    """Index of the style of a response in STYLES; OTHER if it is off topic or in none of them."""
    topic = topic_of(prompt)
    if topic is None or topic not in re.findall(r"[a-z]+", text.lower()):
        return OTHER
    if any(text.startswith(f"{opening} {topic} can be ") for opening in PLAIN_OPENINGS):
        return 0
    if re.match(r"(In short|Three points): 1\. ", text):
        return 1
    if re.match(r"One \w+ a \w+ went to ", text):
        return 2
    return OTHER


def corpus(n: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """n pairs (prompt, response): prompts uniform, styles with frequencies SHARES."""
    topics = list(TOPICS)
    for _ in range(n):
        topic, form = topics[rng.integers(len(topics))], int(rng.integers(len(PROMPTS)))
        style = int(rng.choice(len(STYLES), p=SHARES))
        yield PROMPTS[form].format(topic), answer(topic, form, style, rng)
