"""Facts for model cards about the course's data and common encoders: names, domains, licences. From memory (2026-11)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A corpus behind a task."""

    name: str
    about: str  # a noun phrase: what its texts are
    licence: str  # a clause
    source: str


CORPORA = {
    "sst": Corpus(
        "SST-5",
        "sentences of English film reviews",
        "published for research, without a stated licence",
        "Socher et al. 2013, Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
    ),
    "para": Corpus(
        "Quora Question Pairs (the course's part)",
        "pairs of English questions from quora.com",
        "under Quora's terms of service, for non-commercial use",
        "Iyer, Dandekar and Csernai 2017, First Quora Dataset Release: Question Pairs",
    ),
    "sts": Corpus(
        "STS benchmark",
        "pairs of English sentences from news, captions and forums",
        "CC BY-SA 4.0, with parts under the terms of their sources",
        "Cer et al. 2017, SemEval-2017 Task 1",
    ),
    "cfimdb": Corpus(
        "CFIMDB",
        "whole English film reviews",
        "distributed with the course CS 224N, without a stated licence",
        "the default project of CS 224N, Stanford, after Maas et al. 2011, Learning Word Vectors for Sentiment Analysis",
    ),
}
TOY = Corpus("the toy corpus", "sentences made by a generator", "part of minBERT search, Apache-2.0", "minBERT search")
ENCODER_LICENCES = {  # the end of a hub name -> the hub's short name of the licence
    "bert-base-uncased": "apache-2.0",
    "bert-base-cased": "apache-2.0",
    "bert-large-uncased": "apache-2.0",
    "bert-large-cased": "apache-2.0",
    "all-MiniLM-L6-v2": "apache-2.0",
    "all-MiniLM-L12-v2": "apache-2.0",
    "MiniLM-L6-H384-uncased": "mit",
    "MiniLM-L12-H384-uncased": "mit",
    "bert-tiny": "mit",
    "bert-mini": "mit",
}


def encoder_licence(name: str) -> str:
    """Return the licence of an encoder by the end of its name; "" if it is not known here."""
    return ENCODER_LICENCES.get(name.rpartition("/")[2], "")
