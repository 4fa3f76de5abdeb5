"""Prompts of the task e2e with names and values that are not in the data: a model that has seen only a few dozen
restaurants drafts badly for others.

python -m scripts.new_names e2e/train.jsonl mixed.jsonl --count 4000 --seed 0
Writes every distinct prompt of the data, then COUNT of them with other names; some also with other values, or in plain
words. They have no references: train on them with --targets self.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import click

from specstream.data.datasets import read_rows

# The parts of names; single letters are used in the patterns below.
WORDS = {
    "a": (
        "Amber Ancient Ashen Autumn Black Blue Brass Bright Broken Coastal Copper Corner Crimson Crooked Crystal "
        "Dancing Eastern Electric Emerald Fallen Fiery Forest Garden Gentle Gilded Golden Grand Green Happy Harbour "
        "Hidden Honest Hungry Iron Ivory Jolly Laughing Little Lost Lucky Marble Merry Midnight Misty Moonlit "
        "Northern Old Olive Orchard Painted Pepper Proud Purple Quiet Red River Rolling Rosy Royal Rustic Sapphire "
        "Scarlet Secret Silent Silver Singing Sleepy Snowy Southern Spotted Spring Stone Summer Sunny Sweet Tall "
        "Thirsty Twisted Velvet Village Violet Wandering Western White Wicked Wild Winter Wooden Yellow"
    ),
    "b": (
        "Acorn Anchor Apple Badger Barn Barrel Basil Bear Bell Boar Bottle Bridge Candle Castle Cat Cedar Cellar "
        "Chestnut Clover Compass Cottage Crane Crow Crown Deer Dolphin Dove Dragon Falcon Feather Fig Fork Fountain "
        "Fox Gate Goat Goose Hare Hart Heron Hill Horse Kettle Kitchen Lamb Lantern Lemon Lighthouse Lily Lion Magpie "
        "Maple Market Moon Oak Oven Owl Peacock Pear Pelican Pine Plum Pony Quail Rabbit Raven Robin Rose Saffron "
        "Sail Ship Sparrow Spoon Stag Star Swan Table Tavern Teapot Thistle Tiger Tower Trout Turtle Whale Wheel "
        "Willow Wolf"
    ),
    "p": (
        "Adele Anand Bruno Carmen Chen Dimitri Elena Farah Giorgio Hana Ines Ivan Jasper Kenji Lola Luca Marco Mei "
        "Nadia Omar Paolo Priya Rosa Sami Sofia Tariq Uma Viktor Wanda Yuki"
    ),
    "q": (
        "Andalucia Athena Bombay Capri Delhi Florence Hanoi Istanbul Jaipur Kyoto Lisbon Lyon Madras Milano Napoli "
        "Osaka Palermo Roma Saigon Sevilla Siena Toscana Valencia Venezia Verona Yunnan"
    ),
    "r": "Bistro Canteen Diner Eatery Garden Grill Kitchen Larder Lounge Pantry Parlour Rooms Table",
    "sight": (
        "Abbey Arcade Aquarium Arena Baths Bridge Canal Cathedral Church Cinema Clock College Court Dock Exchange "
        "Fountain Gallery Gardens Gate Hall Harbour Hospital Hotel Library Market Mill Monument Museum Observatory "
        "Palace Park Pier Quay School Square Stadium Station Theatre Tower Zoo"
    ),
    # First and last syllables of invented words.
    "first": (
        "Al Bel Bor Cal Cor Dal Del El Fen For Gal Hel Il Jar Kel Lan Lor Mar Mel Nor Or Pel Quin Ros Sal Tam Tor Ul "
        "Val Win Yar Zan"
    ),
    "last": (
        "a an ara by den don ella en er eto ford ham ia ico ina ini ley lin mere mo na nel o ona ora ova rick ridge "
        "row stow ton vale wick wyn"
    ),
}
PATTERNS = ("The {a} {b}", "{a} {b}", "The {b}", "{p}'s", "{p}'s {b}", "{b} & {c}", "The {b} and {c}", "Café {q}",
            "{q} House", "Taste of {q}", "Bar {p}", "{q}", "{a} {b} Inn", "{p}'s Kitchen", "{s}", "The {s}", "{s}'s",
            "{s} & {b}", "{b} Street {r}", "{s} {r}", "The {a} {s}")  # fmt: skip
# Values that are not in the data, by attribute.
VALUES = {
    "eatType": ("bar", "bistro", "café", "diner", "tea room", "wine bar", "takeaway", "bakery"),
    "food": ("American", "German", "Greek", "Korean", "Lebanese", "Mexican", "Moroccan", "Polish", "Portuguese",
             "Seafood", "Spanish", "Thai", "Turkish", "Vegan", "Vegetarian", "Vietnamese"),
    "priceRange": ("affordable", "expensive", "low", "less than £10", "£10-15", "£15-20", "£30-40", "more than £50"),
    "customer rating": ("2 out of 5", "4 out of 5", "excellent", "good", "poor", "very good"),
    "area": ("harbour", "market square", "old town", "seaside", "suburbs", "university quarter", "village"),
}  # fmt: skip
OTHER_VALUE = 0.15  # share of the values that are replaced
PLAIN = 0.2  # share of the prompts in plain words
ATTRIBUTE = re.compile(r"\b([a-zA-Z ]+)\[([^\]]*)\]")  # of a meaning representation: what, and its value in brackets
SAID = {
    "food": "{} food",
    "priceRange": "{} prices",
    "customer rating": "customer rating {}",
    "near": "near {}",
    "familyFriendly": "{}family friendly",
}


def word(kind: str, rng: random.Random) -> str:
    """A random word of a kind in ``WORDS``."""
    return rng.choice(WORDS[kind].split())


def name(rng: random.Random) -> str:
    """A name that a restaurant might have."""
    words = {letter: word("b" if letter == "c" else letter, rng) for letter in "abcpq"}
    pattern = rng.choice(PATTERNS)
    return pattern.format(**words, r=word("r", rng), s=word("first", rng) + word("last", rng))


def place(rng: random.Random) -> str:
    """A place to be near: another restaurant, or a sight."""
    if rng.random() < 0.5:
        return name(rng)
    first = rng.choice(" ".join(WORDS[letter] for letter in "abq").split())
    return f"{rng.choice(('', '', 'the '))}{first} {word('sight', rng)}"


def changed(meaning: str, rng: random.Random) -> str:
    """A meaning representation with another name, another place nearby, and sometimes another value; some in plain
    words."""

    def other(found: re.Match[str]) -> str:
        what, value = found.groups()
        if what in ("name", "near"):
            value = name(rng) if what == "name" else place(rng)
        elif what in VALUES and rng.random() < OTHER_VALUE:
            value = rng.choice(VALUES[what])
        return f"{what}[{value}]"

    text = ATTRIBUTE.sub(other, meaning)
    return in_words(text) if rng.random() < PLAIN else text


def in_words(meaning: str) -> str:
    """The same as a person may write it: ``The Mill, pub, Thai food, near Avalon, not family friendly``."""

    def said(found: re.Match[str]) -> str:
        what, value = found.groups()
        if what == "familyFriendly":
            value = "" if value == "yes" else "not "
        return SAID.get(what, "{}").format(value)

    return ATTRIBUTE.sub(said, meaning)


@click.command(help=__doc__.splitlines()[0], context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--count", default=4000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(source: Path, target: Path, count: int, seed: int) -> None:
    known = list(dict.fromkeys(row["meaning_representation"] for _, row in read_rows(source)))
    rng = random.Random(seed)
    new = [changed(rng.choice(known), rng) for _ in range(count)]
    lines = (json.dumps({"meaning_representation": m}, ensure_ascii=False) for m in (*known, *new))
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
