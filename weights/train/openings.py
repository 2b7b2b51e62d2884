"""Openings of documents of many kinds, which the model continues without the chat template.

Each kind has templates, filled from the topics of `prompts.py` and the lists below. Names are combined from
parts, so few of them exist. A share of the encyclopedic openings uses the typography of tokenised corpora
(" = Heading = ", spaces around punctuation, "@-@" for a hyphen inside a word).
"""

# ruff: noqa: E501

from __future__ import annotations

import re

import numpy as np
from prompts import NAMES, TOPICS, _split

TOPIC_LIST = [topic for topics in TOPICS.values() for topic in _split(topics)]
FAMILY = """\
    Adler;Ashworth;Barnes;Bellamy;Carver;Castellano;Chandra;Crawford;Delacroix;Donnelly;Eriksen;Fairfax;Ferreira;
    Gallagher;Grant;Hamilton;Harlow;Hoffmann;Ibrahim;Jennings;Kowalski;Lindqvist;Loring;MacLeod;Marlowe;Mercer;
    Nakamura;Norwood;Okafor;Palmer;Pereira;Quill;Rosetti;Sandoval;Schneider;Sinclair;Tanaka;Thornton;Underhill;
    Vance;Volkov;Whitaker;Winslow;Yates;Zimmermann"""
PLACE = """\
    Ashford;Bramley;Calder;Dunmore;Eastvale;Fairhaven;Glenwood;Hartwell;Ivory;Kestrel;Langley;Marston;Newbridge;
    Oakham;Penrith;Queensbury;Redcliff;Saltmarsh;Thornbury;Upton;Verona;Westbrook;Yarrow;San Miguel;Santa Rosa;
    Port Royal;Fort Henry;Saint-Denis;Neustadt;Kowloon;Nairobi;Lahore;Kyoto;Bergen;Porto"""
REGION = """\
    England;Scotland;Ireland;France;Germany;Italy;Spain;Norway;Poland;Russia;Turkey;Egypt;Nigeria;Kenya;India;
    China;Japan;Australia;New Zealand;Canada;Mexico;Brazil;Chile;Texas;California;Ohio;Virginia;New York;Florida"""
NATION = """\
    English;American;Australian;Canadian;French;German;Indian;Irish;Italian;Japanese;Norwegian;Scottish;Spanish;Russian"""
TRADE = """\
    actor;architect;botanist;composer;cricketer;economist;engineer;explorer;footballer;geologist;historian;journalist;
    jurist;mathematician;naval officer;novelist;painter;physician;poet;politician;singer;songwriter;sculptor;
    swimmer;television presenter;basketball player;baseball pitcher;film director;bishop;general"""
ADJECTIVE = """\
    Silver;Crimson;Broken;Northern;Silent;Golden;Burning;Hidden;Last;Winter;Electric;Hollow;Distant;Scarlet;Wild"""
NOUN = """\
    River;Crown;Harvest;Mirror;Horizon;Garden;Empire;Voyage;Lantern;Shadow;Tiger;Orchard;Station;Promise;Storm"""
LATIN = """\
    Amanita;Banksia;Corvus;Drosera;Epinephelus;Falco;Hypsilophodon;Lactarius;Myotis;Panthera;Quercus;Rana;Sphenodon;
    Thunnus;Varanus;albida;borealis;chinensis;gracilis;maculata;occidentalis;robusta;vulgaris"""

LISTS = {
    "family": _split(FAMILY), "place": _split(PLACE), "region": _split(REGION), "nation": _split(NATION),
    "trade": _split(TRADE), "adjective": _split(ADJECTIVE), "noun": _split(NOUN), "latin": _split(LATIN),
    "topic": TOPIC_LIST, "name": NAMES,
    "month": "January;February;March;April;May;June;July;August;September;October;November;December".split(";"),
    "ship": "battleship;destroyer;light cruiser;frigate;submarine;paddle steamer;aircraft carrier".split(";"),
    "animal": "bird;frog;fungus;bat;fish;beetle;lizard;dinosaur;flowering plant;shark;butterfly".split(";"),
    "ordinal": "first;second;third;fourth;fifth;sixth;seventh;eighth;ninth;tenth;eleventh;twelfth".split(";"),
    "work": "song;album;film;novel;television series;video game;opera;short story;symphony;play".split(";"),
    "field": "physics;chemistry;biology;psychology;economics;medicine;geography;philosophy;sociology".split(";"),
    "thing": "a list of numbers;a text file;a binary tree;a queue;a matrix;a date;a bank account;a graph".split(";"),
    "language": "Python;Python;Python;JavaScript;Java;C;SQL;Rust".split(";"),
}  # fmt: skip

ENCYCLOPEDIA = """\
= {name} {family} = | {name} {family} ( born {day} {month} {year} ) is a {nation} {trade} who
= {name} {family} = | {name} {family} ( {day} {month} {old} – {later} ) was a {nation} {trade} and {trade} . He
= {name} {family} = | {name} {family} ( {month} {day} , {old} – {later} ) was a {nation} {trade} . She was born in {place} , {region} ,
= {adjective} {noun} ( {work} ) = | " {adjective} {noun} " is a {year} {work} by {nation} {trade} {name} {family} . It was
= {adjective} {noun} = | {adjective} {noun} is the {ordinal} studio album by {nation} band The {noun}s . It was released on {month} {day} , {year}
= {adjective} {noun} ( video game ) = | {adjective} {noun} is a {year} action @-@ adventure video game developed by
= The {noun} ( The {family} Files ) = | " The {noun} " is the {ordinal} episode of the {ordinal} season of the American television series
= Battle of {place} = | The Battle of {place} was fought on {day} {month} {old} between
= SMS {noun} = | SMS {noun} was a {ship} built for the {nation} Navy in the late 19th century . The ship was laid down
= HMS {noun} ( {old} ) = | HMS {noun} was a {ship} of the Royal Navy . She was built
= USS {family} = | USS {family} was a {ship} of the United States Navy , launched on {day} {month} {year}
= Hurricane {name} ( {year} ) = | Hurricane {name} was the {ordinal} named storm of the {year} Atlantic hurricane season . The storm
= {latin} {latin} = | {latin} {latin} is a species of {animal} in the family
= {place} , {region} = | {place} is a town in {region} . At the {year} census , the population was
= {place} Castle = | {place} Castle is a medieval castle in {region} . It was built in the
= {place} railway station = | {place} railway station serves the town of {place} in {region} . It was opened in {old}
= {region} State Route {small} = | State Route {small} is a state highway that runs for {small} @.@ {day} miles in {region} from
= {year} {place} F.C. season = | The {year} season was {place} Football Club 's {ordinal} season in
= {place} River = | The {place} River is a river in {region} . It rises
= {nation} literature of the {ordinal} century = | The literature of
= History of {place} = | The history of {place} begins
= {topic} = | The term
= = Early life = = | {family} was born in {place} , {region} , on {day} {month} {old} , the {ordinal} child of
= = Career = = | In {year} {family} joined the {nation} national team and
= = = Reception = = = | The {work} received generally positive reviews from critics . Writing for
= = Plot = = | The story begins in {place} , where {name} {family} , a {trade} ,
= = Background = = | By {month} {old} , the {nation} army under General {family} had
= = Description = = | The {animal} grows to a length of {day} cm ( {small} @.@ {day} in ) and
= = Geography = = | {place} lies on the banks of the {noun} River , {small} km north of
= = Production = = | Filming took place in {place} between {month} and {month} {year} . The director , {name} {family} ,
= = Aftermath = = | The {nation} losses were {small} killed and {day} wounded . {family} reported that
= = Legacy = = | {family} 's work has been compared with that of the {nation} {trade} {name}
= = Personal life = = | In {year} , {name} {family} married the {trade}
= = Taxonomy = = | The {animal} was first described by the {nation} naturalist {name} {family} in {old} as {latin} {latin} . The specific
= = Distribution and habitat = = | {latin} {latin} occurs in {region} and {region} , where it is found in
= = Meteorological history = = | A tropical wave left the coast of Africa on {month} {day} and moved westward . By {month} {day}
= = Gameplay = = | The player controls {name} , a {trade} who
= = Release and promotion = = | The {work} was first shown at the {place} Film Festival on {day} {month} {year} , and
= = Music and lyrics = = | " {adjective} {noun} " is written in the key of
= = Architecture = = | The building has {small} rooms on three floors . Its façade , built of
= = Demographics = = | According to the census of {year} , there were {small} @,@ {small}0 people in
= = Climate = = | {place} has a humid continental climate . Temperatures average
= = Economy = = | The economy of {region} depends on
= = Etymology = = | The name {place} is derived from
= = Armament = = | The main battery of the {ship} consisted of {day} guns , which
= = Service history = = | After her commissioning in {year} , {noun} joined the {ordinal} squadron at {place} and
= = International career = = | {family} made his debut for {region} against {region} on {day} {month} {year} .
= = Route description = = | The road begins at a junction south of {place} and
= = = {ordinal} season = = = | The team finished {ordinal} in its division with {small} points , behind
In {month} {old} , {family} marched on {place} with an army of
The {ordinal} Earl of {place} ( {old} – {later} ) , eldest son of
Critical reviews of the {work} were mixed . {name} {family} of The {place} Times called it
Between {year} and {later} the {place} Railway ran {small} trains a day from
The {animal} feeds mainly on
By the {ordinal} century , {place} was a centre of the {nation} trade in"""

KINDS: dict[str, list[str]] = {
    "news": r"""{place}, {month} {day} - Officials in {region} said on Monday that
{place} ({region}) — A {trade} who
The {place} Herald | {month} {day}, {year} | Local {trade} wins
Shares fell sharply in {region} on Tuesday after
Police are looking for
A new study published this week in the journal of {field} suggests that
{name} {family}, a {trade} from {place}, has
The government of {region} announced plans to
Residents of {place} gathered on Saturday to""".split("\n"),
    "how-to": r"""How to Get Started with {topic}\n\nIf you have ever wanted to
# {ordinal} steps: {topic}\n\n## What you need\n\n-
Step 1:
Before you begin with {topic}, make sure
Frequently asked questions about {topic}\n\nQ:
The beginner's guide to {topic}\n\n1.
Safety instructions\n\nAlways
{topic}: tips and tricks from a {trade}\n\n""".split("\n"),
    "fiction": r"""Chapter {ordinal}\n\n{name} had never
It was raining in {place} when {name} {family}
"I don't believe you," said {name}.
Once upon a time, in a village near {place}, there lived a {trade} who
The {adjective} {noun}\n\nBy {name} {family}\n\n
The ship left {place} at dawn.
{name} woke up and knew at once that
The old {trade} looked at the {noun} and""".split("\n"),
    "essay": r"""On {topic}\n\nThere is a
{topic} is often thought of as
In the history of {field}, few ideas have been as important as
The role of {topic} in modern society has
Why do we care about {topic}?
Introduction\n\nThe study of {field} has
Abstract\n\nWe investigate
It is widely agreed that""".split("\n"),
    "school": r"""Lesson {small}: {topic}\n\nObjectives:\n
What is {field}? {field} is the study of
{field} | Chapter {small} | Key terms\n\n
The following table shows
Question {small}. A train leaves {place} at
Photosynthesis, respiration and
In {old}, the {nation} {trade} {name} {family} discovered that
The {ordinal} law of""".split("\n"),
    "forum": r"""I've been trying to learn about {topic} for a few months and
Q: Does anyone know how to
Posted by {name} on {month} {day}, {year} at 10:{small}\n\n
Re: {topic}\n\nThanks for the reply. I
My {trade} told me that
Review: I bought this in {month} and
Dear {name},\n\nThank you for your letter of {month} {day}.
Hi everyone! I'm {name} from {place}. I""".split("\n"),
    "speech": r"""Ladies and gentlemen,\n\nIt is an honour to
Mr. President, members of the Congress:
To the people of {region}:\n\n
My friends, when I was a {trade} in {place},
The meeting was called to order at""".split("\n"),
    "code": r"""def read_
import sys\n\ndef main():
#!/usr/bin/env python3\n'''Work with {thing}.'''\n
class {noun}:\n    '''
// A function in {language} that works with {thing}\n
```{language}\n
# {noun}\n\n{noun} is a small {language} library for
SELECT
function {noun}(
/* {noun}.c: {thing} */\n#include
## Installation\n\n```bash\npip install
Write a {language} program that works with {thing}.\n\nSolution:\n""".split("\n"),
    "nothing": [""],
}  # fmt: skip
SHARES = {
    "encyclopedia": 0.40, "news": 0.10, "how-to": 0.05, "fiction": 0.06, "essay": 0.08, "school": 0.05,
    "forum": 0.05, "speech": 0.02, "code": 0.05, "nothing": 0.14,
}  # fmt: skip
TOKENISED = 0.6  # share of the encyclopedic openings with the typography of tokenised corpora


def plain(text: str) -> str:
    """Set an encyclopedic opening in usual typography."""
    text = re.sub(r" @(.)@ ", r"\1", re.sub(r"(= )+([^=|]*?)( =)+", r"\2", text))
    text = re.sub(r'" ([^"]*) "', r'"\1"', text)
    text = re.sub(r" ([,.)']|– )", r"\1", text).replace("( ", "(")
    return text.replace(" | ", "\n\n")


def fill(template: str, rng: np.random.Generator) -> str:
    """Fill the fields of a template. Names, places and years stay the same within one opening."""
    kept: dict[str, str] = {}

    def draw(match: re.Match[str]) -> str:
        field = match[1]
        if field in ("day", "small"):
            return str(rng.integers(1, 29 if field == "day" else 100))
        if field in ("year", "old", "later"):
            return kept.setdefault(
                field,
                str(rng.integers(*{"year": (1920, 2020), "old": (1640, 1900), "later": (1901, 1960)}[field])),
            )
        word = LISTS[field][rng.integers(len(LISTS[field]))]
        return (
            kept.setdefault(field, word)
            if field in ("family", "place", "name", "noun", "adjective")
            else word
        )

    return re.sub(r"\{([a-z]+)\}", draw, template)


def opening(kind: str, rng: np.random.Generator) -> str:
    """Draw one opening of a kind in SHARES."""
    if kind != "encyclopedia":
        templates = KINDS[kind]
        return fill(templates[rng.integers(len(templates))].replace("\\n", "\n"), rng)
    templates = ENCYCLOPEDIA.split("\n")
    text = fill(templates[rng.integers(len(templates))], rng)
    if rng.random() < TOKENISED:
        return (
            " " + text.replace(" | ", " \n \n ")
            if rng.random() < 0.8
            else " \n " + text.replace(" | ", " \n \n ")
        )
    return plain(text)


def openings(n: int, rng: np.random.Generator) -> tuple[str, list[str]]:
    """Draw a kind and n openings of it, for one row."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    return kind, [opening(kind, rng) for _ in range(n)]
