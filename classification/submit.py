"""Training as a SLURM job that goes back into the queue, and on, until it is done.

``python -m classification.submit --cfg FILE --nodes N --ngpus M --partition P [flags of python -m classification]``
starts one process per GPU through submitit (``pip install submitit``). Two minutes before its time is over, or when it
is preempted, the job writes a checkpoint, queues again and goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from yacs.config import CfgNode

from classification.arguments import parse
from classification.job import Job
from classification.run_folder import run_folder
from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error

# Seconds between the signal and the end: for a step, an agreement and a checkpoint.
_SIGNAL_DELAY = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Check the training's command line, submit it, print where it logs; return 0 once it is queued."""
    options, arguments = _parser().parse_known_args(argv)
    for name in ("nodes", "ngpus", "minutes", "cpus_per_task"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    config, _ = parse(arguments)
    job = _executor(options, config).submit(Job(arguments))
    print(f"job {job.job_id}: {options.nodes} node(s) x {options.ngpus} process(es), run folder {run_folder(config)}")
    print(f"output: {job.paths.stdout}")
    if options.wait:
        job.results()
        print(f"job {job.job_id} is done")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m classification.submit",
        description="Submit a training to SLURM. --cfg and other flags not listed here go to python -m classification.",
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines")
    parser.add_argument("--ngpus", type=int, default=1, metavar="M", help="GPUs, and so processes, on each of them")
    parser.add_argument("--partition", metavar="NAME", help="SLURM partition")
    parser.add_argument("--account", metavar="NAME", help="SLURM account")
    parser.add_argument("--qos", metavar="NAME", help="SLURM quality of service")
    parser.add_argument("--constraint", metavar="NAME", help="SLURM constraint, for instance a type of GPU")
    parser.add_argument("--minutes", type=int, default=1440, metavar="N", help="time limit of one turn")
    parser.add_argument("--turns", type=int, default=100, metavar="N", help="how often it may queue again on time-out")
    parser.add_argument("--cpus-per-task", type=int, default=10, metavar="N", help="cores of each process")
    parser.add_argument("--mem-gb", type=float, metavar="F", help="memory of each machine")
    parser.add_argument(
        "--cluster", default="slurm", choices=("slurm", "local", "debug"), help="local and debug try it out here"
    )
    parser.add_argument("--wait", action="store_true", help="return when the training is done")
    return parser


def _executor(options, config: CfgNode):
    try:
        import submitit
    except ImportError:
        raise UserError("python -m classification.submit needs submitit: pip install submitit==1.5.4") from None
    try:
        executor = submitit.AutoExecutor(
            run_folder(config) / "jobs", options.cluster, slurm_max_num_timeout=options.turns
        )
    except RuntimeError as error:
        raise UserError(f"no {options.cluster} here: {error}") from None
    common = {"name": config.MODEL.NAME, "timeout_min": options.minutes, "nodes": options.nodes}
    common |= {"tasks_per_node": options.ngpus, "gpus_per_node": 0 if config.DEVICE == "cpu" else options.ngpus}
    common |= {"cpus_per_task": options.cpus_per_task, "stderr_to_stdout": True}
    if options.mem_gb:
        common["mem_gb"] = options.mem_gb
    stated = {key: getattr(options, key) for key in ("partition", "account", "qos", "constraint")}
    slurm = {f"slurm_{key}": value for key, value in stated.items() if value}
    executor.update_parameters(**common, **slurm, slurm_signal_delay_s=_SIGNAL_DELAY)
    return executor


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
