"""What a training command would do, printed: nothing is trained and nothing is written."""

import contextlib
import json

from clu import parameter_overview
from ml_collections import ConfigDict

from xmcgan.config import validate
from xmcgan.data import DataSet
from xmcgan.errors import DataError
from xmcgan.planning.program import state_shapes
from xmcgan.planning.report import make_plan
from xmcgan.planning.targets import HERE, find_target
from xmcgan.training import build


def print_dry_run(config: ConfigDict) -> None:
    """Print the resolved config, parameters by layer, and the compiled step of this machine."""
    validate(config)
    build.replace_missing_image_network(config)
    print(json.dumps(config.to_dict(), indent=2))
    shapes = state_shapes(config)
    build.check_freeze(config, shapes)
    for network, params in (("generator", shapes.g_params), ("discriminator", shapes.d_params)):
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        print(f"\n{network}\n{table}")
    num_examples = None
    with contextlib.suppress(DataError):  # not prepared yet
        data = config.data
        source = DataSet(data.name, data.data_dir, **data.fields).load(data.train_split)
        num_examples = len(source)
    examples = "not prepared here" if num_examples is None else f"{num_examples:,} training images"
    print(f"\ndata: {config.data.name}, {examples}\ncompiling the training step ...", flush=True)
    plan = make_plan(config, find_target(HERE), num_examples=num_examples)
    rows = [*plan.rows(), ("steps", f"{plan.steps:,}" if plan.steps else "of data not here")]
    for name, text in rows:
        print(f"  {name:<18}  {text}")
