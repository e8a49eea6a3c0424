"""Plan a training run: parameters, FLOPs and memory; with --plan, also communication and time on many GPUs.

The command needs no weights and no data.

examples:
  asvr plan asvr_vicuna7b
  asvr plan asvr_vicuna7b --plan 1x8 --card H200
"""

import argparse
from pathlib import Path

from asvr.commands.cli import add_cfg_options, add_config, new_parser, parse_cfg_options, refuse_options

CLUSTER = ("card", "link_gbs", "network_gbs", "host_gbs", "disk_gbs")
ASSUMED = ("samples", "mfu", "image_kb")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = new_parser(prog, __doc__)
    add_config(parser)
    parser.add_argument(
        "--plan",
        metavar="NODESxGPUS",
        help="memory, communication, checkpoints and data input for this number of nodes and of GPUs in each node, "
        "such as 8x8; without it: the sizes, FLOPs and memory that `asvr train --dry-run` prints",
    )
    parser.add_argument("--samples", type=int, help="the samples of a stage (default: 10,000,000)")
    parser.add_argument("--card", help="the GPU: A100, H100 (default) or H200")
    parser.add_argument("--mfu", type=float, help="the part of the GPUs' peak that a step reaches (default: 0.4)")
    parser.add_argument("--link-gbs", type=float, help="GB/s into a GPU from others of its node (default: 300)")
    parser.add_argument("--network-gbs", type=float, help="GB/s into a node from other nodes (default: 200)")
    parser.add_argument("--host-gbs", type=float, help="GB/s between a GPU and the CPU's memory (default: 25)")
    parser.add_argument(
        "--host-memory",
        type=float,
        metavar="GB",
        help="the CPU's memory of a machine that will train, for parallel.cpu_offload (default: this machine's)",
    )
    parser.add_argument("--disk-gbs", type=float, help="GB/s from a node to the disk (default: 2)")
    parser.add_argument("--image-kb", type=float, help="the size of an image file in kB (default: 150)")
    parser.add_argument("--out", type=Path, help="a JSON file to write the plan to")
    add_cfg_options(parser)
    return parser


def main() -> None:
    args = parser().parse_args()
    given = {name: getattr(args, name) for name in (*CLUSTER, *ASSUMED)}
    if args.plan is None:
        refuse_options(dict(given, out=args.out), "needs --plan")
    from asvr.recipe.config import load_config  # here: --help need not wait for torch

    cfg = load_config(args.config, parse_cfg_options(args.cfg_options))
    if args.plan is None:
        from asvr.profiling.dry_run import dry_run

        print(dry_run(cfg, host_memory=args.host_memory))
        return
    from asvr.flops.host_memory import require_offload
    from asvr.profiling.plan import Assumed, Cluster, parse_nodes, plan, plan_inputs
    from asvr.profiling.plan_table import tables, write_json
    from asvr.recipe.recipe import Recipe
    from asvr.recipe.validate import check_config

    check_config(cfg)
    require_offload(Recipe(cfg), args.host_memory)
    given = {name: value for name, value in given.items() if value is not None}
    speeds = {name: given[name] for name in CLUSTER if name in given}
    cluster = Cluster(*parse_nodes(args.plan), host_memory=args.host_memory, **speeds)
    assumed = Assumed(**{name: given[name] for name in ASSUMED if name in given})
    stages, inputs = plan(cfg, cluster, assumed), plan_inputs(cfg, assumed)
    print(tables(stages, inputs, cluster, assumed))
    if args.out is not None:
        write_json(args.out, stages, inputs, cluster, assumed)
