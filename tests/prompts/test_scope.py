"""What a run erases, retains and leaves out is shown before it starts, and prompts that are too long are counted."""

from __future__ import annotations

from dataclasses import replace

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.loading import TextToImage
from advunlearn.models.prompt_tokens import find_cut_prompts
from advunlearn.prompts.scope import make_scope
from advunlearn.reporting.page import describe_budget
from advunlearn.reporting.report import format_table

FITS = "dog " * 75  # with start and end of text 77 tokens
LONG = "dog " * 75 + "church"


def test_what_is_erased_and_what_is_left_out_is_described(model: TextToImage) -> None:
    concept = ConceptConfig(concept="Church, knife")
    scope = make_scope(concept, "none", ["a house", "two churches", "knives"], ["church", "knife"], model.tokenizer)
    assert scope.describe().splitlines() == [
        "erases 2 objects: 'Church', 'knife'; trained prompts: 'a Church', 'a knife'",
        "retains 1 prompts; 2 left out, because they name or show what is erased: 'two churches', 'knives'",
    ]
    assert scope.to_dict() == {
        "erased": ["Church", "knife"],
        "erased_prompts": ["a Church", "a knife"],
        "retained_prompts": 1,
        "left_out": ["two churches", "knives"],
        "cut_prompts": {},
    }


def test_a_long_list_is_shown_in_part(model: TextToImage) -> None:
    scope = make_scope(ConceptConfig(concept="ink", kind="style"), "coco", [], None, model.tokenizer)
    assert "'a dog, ink style'" in scope.describe() and "and 10 more" in scope.describe()  # of 16 subjects
    assert "retains 80 prompts; 0 left out, because they name or show what is erased\n" in scope.describe() + "\n"


def test_long_retained_prompts_are_counted(model: TextToImage) -> None:
    retained = [FITS, LONG, LONG, "dog " * 301]
    scope = make_scope(ConceptConfig(), "none", retained, None, model.tokenizer, "cut")
    assert scope.cut == {LONG: 76, retained[-1]: 301} == find_cut_prompts(model.tokenizer, [*scope.cut, FITS])
    assert "2 of 3 prompts have more than 75 tokens and are cut" in scope.describe()
    assert find_cut_prompts(model.tokenizer, []) == {}
    scope = make_scope(ConceptConfig(), "none", retained, None, model.tokenizer)
    assert scope.cut == {retained[-1]: 301}  # four chunks at most
    assert "1 of 3 prompts have more than 300 tokens and are cut" in scope.describe()
    scope = make_scope(ConceptConfig(), "none", retained[:2], None, model.tokenizer)
    assert scope.cut == {} and "1 of 2 prompts have more than 75 tokens and are encoded in chunks" in scope.describe()


def test_an_evaluation_says_which_of_its_prompts_are_long(model: TextToImage, judge: ConvJudge) -> None:
    config, inputs = EvaluateConfig(cases=2, repeats=1), EvaluationInputs(prompts=[LONG, FITS])
    chunked = Evaluator(model, judge, ConceptConfig(), config, inputs)
    assert chunked.describe()["chunked_prompts"] == {LONG: 76} and "cut_prompts" not in chunked.describe()
    assert "are encoded in chunks, as ComfyUI does" in chunked.describe_long_prompts()
    evaluator = Evaluator(replace(model, long_prompts="cut"), judge, ConceptConfig(), config, inputs)
    report = evaluator.describe()
    assert report["cut_prompts"] == {LONG: 76} and "(76 tokens)" in evaluator.describe_long_prompts()
    assert "1 prompts are too long" in format_table({"concept": "church", "models": {}, **report})
    assert "which is no robustness" in describe_budget(report)
    short = Evaluator(model, judge, ConceptConfig(), config)
    assert "cut_prompts" not in short.describe() and short.describe_long_prompts() == ""
