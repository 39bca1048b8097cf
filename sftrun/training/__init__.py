"""Building blocks for backends on transformers, and for exporters that load a tuned model.

Every module but `limits` imports torch: import it inside the method that runs in a worker process. `import sftrun`
imports none of them.

For plugins:

- `limits` (light): recipe checks for transformers' trainer; `TRAINER_KEYS` and `MODEL_KEYS`, for `honours`.
- `settings`: a recipe as settings of transformers' trainer. `compute`: device and number format.
- `rows`, `batches`: prepared samples as a dataset, and as batches. `tokenizer`: transformers' tokenizer of a recipe.
- `trainer.RunTrainer`: events, token counts and validation loss for transformers' or trl's trainer.
- `keeper.Keeper`, `checkpoints`: complete checkpoints, resuming, early stopping, SIGTERM.
- `saved`: the folder `model/`, written atomically. `base_model`: the base, and that an adapter fits it.
- `model`: `load_base`, `load_tuned`, `merge_adapter`, and comparing two models.
- `loaded.LoadedModel`: a transformers model as evaluators use it.

Provisional, and free to change in any release: `memory`, `sharding`, `ranks`, `weights`, `sft_trainer`, `train`,
`pretrained`, and in `model` every module but `load` and `merge`.
"""

import os

# models like mamba load native code of the Hub, of no fixed commit, if the package kernels is installed
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__all__ = [
    "base_model",
    "batches",
    "checkpoints",
    "compute",
    "keeper",
    "limits",
    "loaded",
    "model",
    "rows",
    "saved",
    "settings",
    "tokenizer",
    "trainer",
]
