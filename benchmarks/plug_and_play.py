"""Robust text encoders in further models that share the miniature's text encoder, attacked through those models.

    python tools/miniature/further_unets.py fine-tune runs/unets/fluent
    python tools/miniature/further_unets.py perturb runs/unets/perturbed
    python benchmarks/plug_and_play.py run runs/unets/fluent runs/unets/perturbed --concepts castle church
    python benchmarks/plug_and_play.py table

The encoders are those of benchmarks/phenomenon.py, trained on the miniature's own UNet. Every attack has the further
model's UNet for its search, and images of the concept by that model as targets. `run` adds a row for each (concept,
UNet, seed, model, part) to benchmarks/results/plug_and_play.json and skips rows that exist; `table` prints Markdown
with the rows of the miniature's own UNet from phenomenon.json.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import replace

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from measured import SETTINGS, find_missing, format_cells, format_titles, make_evaluator, measure, merge_parts
from result_rows import ATTACKS, ResultRows
from trained import TITLES, TrainedModels, make_concept

from advunlearn.models.loading import load
from advunlearn.models.unet_files import load_unet

OWN = "its own"
MODELS = ("original", "esd_text", "advunlearn")


def run(args: argparse.Namespace, results: ResultRows) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    model = load("miniature", dtype=torch.bfloat16)
    for path in args.unets:
        further = replace(model, denoiser=load_unet(path, model.denoiser)[0])
        for name in args.concepts:
            concept = make_concept(name)
            evaluator = make_evaluator(further, concept)
            for seed in args.seeds:
                models = TrainedModels(model, concept, seed)
                for kind in args.models:
                    key = {"unet": path.name, "concept": name, "seed": seed * (kind != "original"), "model": kind}
                    if missing := find_missing(results, key, args.attacks):
                        subject, _ = models.get(kind)
                        subject = replace(subject, denoiser=further.denoiser)
                        measure(evaluator, subject, results, key, missing)


def table(results: ResultRows) -> str:
    """Return the rows as Markdown, summed over seeds."""
    own = [row | {"unet": OWN} for row in ResultRows("phenomenon.json", SETTINGS).rows]
    found = merge_parts([*own, *results.rows], ("concept", "unet", "model", "seed"))
    concepts = list(dict.fromkeys(row["concept"] for row in results.rows))
    unets = [OWN, *dict.fromkeys(row["unet"] for row in results.rows)]
    titles = ["concept", "UNet", "model", "seeds", *format_titles(tuple(ATTACKS))]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for concept, unet, kind in [(c, u, k) for c in concepts for u in unets for k in MODELS]:
        models = [model for key, model in found.items() if key[:3] == (concept, unet, kind)]
        models = [model for model in models if set(ATTACKS) <= set(model["asr"])]
        if models:
            cells = [concept, unet, TITLES[kind], str(len(models)), *format_cells(models, tuple(ATTACKS))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("unets", nargs="*", type=pathlib.Path, metavar="UNET", help="folders of further UNets")
    parser.add_argument("--concepts", nargs="+", default=["castle", "church"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--attacks", nargs="+", default=["unlearndiffatk", "soft_prefix"])
    args = parser.parse_args()
    results = ResultRows("plug_and_play.json", SETTINGS)
    if args.what == "table":
        print(table(results))
    else:
        run(args, results)


if __name__ == "__main__":
    main()
