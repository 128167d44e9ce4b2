"""`advunlearn demo`: train the baselines and AdvUnlearn on the miniature, attack all of them, write a report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

from ...config.concept import ConceptConfig
from ...config.evaluation import DEMO_BANK, DEMO_BUDGET, DEMO_TRAIN, EvaluateConfig
from ...config.io import ModelConfig
from ...config.training import BankConfig
from ...errors import AdvUnlearnError
from ...formats.text_encoders import save_encoder
from ...reporting import report
from ...training.events import Progress
from ...training.recipe import recipe_metadata
from ..demo import BASELINES, RECIPES, study
from ..flags import settings
from ..inputs import command_line, load_judge, load_model, make_out_folder
from ..progress_bar import ProgressBar
from .evaluate import make_progress
from .output import print_result


def run(args: Namespace) -> None:
    """Run the demo; write the report and the robust encoder."""
    model_config, concept = settings(ModelConfig, args), settings(ConceptConfig, args)
    if model_config.model != "miniature":
        raise AdvUnlearnError("demo runs on the miniature; use train and evaluate for other models")
    config = settings(EvaluateConfig, args, **DEMO_BUDGET)
    changes = DEMO_TRAIN | {"seed": args.seed}
    recipes = {name: replace(RECIPES[name], train=replace(RECIPES[name].train, **changes)) for name in BASELINES}
    model, judge, folder = load_model(model_config), load_judge(args), make_out_folder(args)
    bars: dict[str, ProgressBar] = {}

    def on_train(name: str, progress: Progress) -> None:
        bars.setdefault(name, ProgressBar(name)).show_training(progress)

    def on_measure(name: str) -> Callable[[str, int, int], None]:
        for bar in bars.values():
            bar.close()
        bars[name], follow = make_progress(name)
        return follow

    done = study(
        model,
        judge,
        concept,
        recipes,
        BankConfig(**DEMO_BANK),
        config,
        seed=args.seed,
        command=command_line(),
        on_train=on_train,
        on_measure=on_measure,
    )
    for bar in bars.values():
        bar.close()
    report.write(folder, done.report, done.measurements, done.losses)
    row = done.report["models"]["advunlearn"]
    metadata = recipe_metadata(model, concept, row["config"], scores={"asr": row["asr"], "utility": row["utility"]})
    save_encoder(folder / "encoder.safetensors", done.results["advunlearn"].encoder, metadata)
    files = f"{folder / 'report.html'}, {folder / 'report.json'} and {folder / 'encoder.safetensors'}"
    print_result(args, done.report, f"{report.table(done.report)}\nwrote {files}")
