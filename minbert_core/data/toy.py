"""The embedded corpus: a seeded generator that writes the three tasks, small, in the course's layout, with a vocabulary.

It stands where a data folder would: `data: toy`. A sentence is a few concepts from a small lexicon, each said by one of its
synonyms. Sentiment sums word valences, turned by negation and scaled by intensifiers; a paraphrase keeps every concept; a
similarity counts those kept. Labels carry noise, so no model is perfect; a model that learns the synonyms and the negation
beats one that does not, so trials differ.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import string
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from minbert_core.data.tasks import TASKS, Task

VERSION = 1  # part of the folder's name; raise it when what is written changes
SIZES = {"train": 2000, "dev": 400, "test": 400}  # examples of each task

# Each concept is a set of synonyms. A scene of the pair tasks is one concept of each of these four.
PEOPLE = [c.split("/") for c in "doctor/physician child/kid/youngster teacher/instructor lawyer/attorney singer/vocalist writer/author "
          "cook/chef farmer/grower soldier/trooper pilot/aviator".split()]  # fmt: skip
ACTIONS = [c.split("/") for c in "buys/purchases repairs/fixes/mends carries/hauls cleans/washes watches/observes finds/discovers "
           "hides/conceals wrecks/destroys builds/constructs draws/sketches".split()]  # fmt: skip
THINGS = [c.split("/") for c in "car/automobile bag/sack/pouch house/home boat/ship/vessel stone/rock coat/jacket couch/sofa gift/present "
          "cup/mug carpet/rug".split()]  # fmt: skip
PLACES = [c.split("/") for c in "forest/woods shop/store street/road/lane garden/yard city/town river/stream coast/shore school/academy "
          "hospital/clinic market/bazaar".split()]  # fmt: skip
SCENE = (PEOPLE, ACTIONS, THINGS, PLACES)

ASPECTS = "film movie story plot cast acting dialogue music ending pacing direction script humor camera work opening premise".split()
VALENCE = {
    2: "brilliant superb wonderful magnificent excellent masterful dazzling moving hilarious unforgettable".split(),
    1: "good nice charming pleasant likable solid clever warm funny lively".split(),
    -1: "dull weak bland slow clumsy thin tired flat messy predictable".split(),
    -2: "awful terrible dreadful horrible atrocious abysmal unbearable insulting lifeless disastrous".split(),
}
NEGATIONS = "not never hardly".split()  # turn the valence round and halve it: "not awful" is less than good
SCALES = {1.5: "very truly really extremely".split(), 0.5: "slightly somewhat fairly rather".split(), 1.0: ["quite", "just"]}
GLUE = "the a is are in and but while , . an at near".split()

CUTS = (-1.6, -0.4, 0.4, 1.6)  # of the summed valence, between the five sentiments
