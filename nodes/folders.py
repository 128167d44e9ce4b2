"""The host's folders: where encoders, embeddings and runs are, and under which names the host lists them."""

from __future__ import annotations

import os
import pathlib

import folder_paths
from torch import Tensor

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import TEXT_ENCODER_WEIGHTS, write_atomic

ENCODERS = "text_encoders"  # models/text_encoders, models/clip, output/clip and, for what is fetched, models/advunlearn
FETCHED = pathlib.Path(folder_paths.models_dir) / "advunlearn"
# Last in the list: it changes no default, and the host's own CLIP loaders see what was fetched too.
folder_paths.add_model_folder_path(ENCODERS, str(FETCHED))
JUDGES = "classifiers"
folder_paths.add_model_folder_path(JUDGES, os.path.join(folder_paths.models_dir, JUDGES))


def encoder_files() -> list[str]:
    """Return the text encoders to choose from: the files that the host lists, and CLIPTextModel folders as "name/".

    A folder is one when it holds config.json beside its weights, which then are not listed a second time.
    """
    return sorted({folder_of(file) or file for file in folder_paths.get_filename_list(ENCODERS)})


def folder_of(file: str) -> str:
    """Return the name ("a/b/") of the CLIPTextModel folder that a listed file is the weights of, or nothing."""
    path = pathlib.PurePath(file)
    whole = (
        path.name in TEXT_ENCODER_WEIGHTS
        and path.parent.name
        and folder_paths.get_full_path(ENCODERS, str(path.with_name("config.json")))
    )
    return f"{path.parent.as_posix()}/" if whole else ""


def encoder_path(name: str) -> pathlib.Path:
    """Return the file of a text encoder, or of the weights in a folder ("name/"). Raises AdvUnlearnError if gone."""
    files = [name + file for file in TEXT_ENCODER_WEIGHTS] if name.endswith("/") else [name]
    found = next((path for file in files if (path := folder_paths.get_full_path(ENCODERS, file))), None)
    if found is None:
        raise AdvUnlearnError(
            f"encoder {name!r} is not among the text encoders; put it into models/text_encoders and refresh"
        )
    return pathlib.Path(found)


def new_path(name: str, folder: str = "clip", suffix: str = ".safetensors") -> tuple[pathlib.Path, str]:
    """Return a fresh path in a folder of the output, and the name under which the host lists it there at once."""
    output = folder_paths.get_output_directory()
    where, file, counter, _, _ = folder_paths.get_save_image_path(f"{folder}/{name}", output)
    path = pathlib.Path(where) / f"{file}_{counter:05}_{suffix}"
    return path, str(path.relative_to(pathlib.Path(output) / folder))


def run_folder(name: str) -> pathlib.Path:
    """Return the folder in which a training run of this name keeps its state."""
    return pathlib.Path(folder_paths.get_output_directory()) / "advunlearn" / name


def save_embedding(name: str, embeddings: Tensor) -> str:
    """Save (k, 768) token embeddings where the host looks for them; return the text that stands for them."""
    from safetensors.torch import save

    folder = pathlib.Path(folder_paths.get_folder_paths("embeddings")[0])
    tensors = {"clip_l": embeddings.detach().float().cpu().contiguous()}
    write_atomic(folder / f"{name}.safetensors", save(tensors))
    return f"embedding:{name}"


def judge_folders(kind: str) -> list[str]:
    """Return the folders in models/classifiers that hold a judge of this kind, by their path in there."""
    from ..advunlearn.judges.folders import kind_of

    names = set()
    for root in folder_paths.get_folder_paths(JUDGES):
        for place, _, files in os.walk(root, followlinks=True):
            if "config.json" not in files:
                continue
            try:
                if kind_of(place) == kind:
                    names.add(pathlib.Path(place).relative_to(root).as_posix())
            except (AdvUnlearnError, OSError):  # another kind of model: it is for another node
                continue
    return sorted(names)


def judge_folder(name: str) -> pathlib.Path:
    """Return the folder of a listed judge. Raises AdvUnlearnError when it is gone."""
    places = [pathlib.Path(root) / name for root in folder_paths.get_folder_paths(JUDGES)]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise AdvUnlearnError(f"judge {name!r} is not in models/{JUDGES}; put its folder there and refresh")
    return found
