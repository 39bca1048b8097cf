"""Targets for worker processes, for tests/test_launch.py and tests/test_elastic.py."""

import errno
import os
import signal
import time
from pathlib import Path

import sftrun
from sftrun.events import Custom


def wait_for_end():
    """Waits for a signal; a test in which none comes runs into its time limit."""
    while True:
        time.sleep(1)


def report(recipe, run, emit):
    emit(Custom(name="seed", data={"seed": recipe.seed}))


def user_error(recipe, run, emit):
    raise sftrun.UserError(sftrun.Problem("too hot", path=("train", "precision"), hint="cool it"))


def bug(recipe, run, emit):
    raise ZeroDivisionError("a bug of ours")


def memory(recipe, run, emit):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def allocator(recipe, run, emit):
    import torch

    torch.empty(1 << 55)


def killed(recipe, run, emit):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_for_memory(recipe, run, emit):
    """The kernel counts the processes that it kills for memory."""
    (run.path / "vmstat").write_text("pgpgin 5\noom_kill 4\n")
    killed(recipe, run, emit)


def killed_in_the_middle_of_a_line(recipe, run, emit):
    pipe = next(int(name) for name in os.listdir("/dev/fd") if is_events_pipe(name))
    os.write(pipe, '{"event": "warning", "message": "Größe'.encode()[:-2])
    os._exit(7)


def is_events_pipe(name):
    import fcntl
    import stat

    try:
        mode = os.fstat(int(name)).st_mode
        return int(name) > 2 and stat.S_ISFIFO(mode) and fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_WRONLY
    except OSError:
        return False


def broken_pipe(recipe, run, emit):
    raise BrokenPipeError(errno.EPIPE, "Broken pipe", "upload")


def leaves_with_code_0(recipe, run, emit):
    """As code of a plugin may; the work is not done."""
    os._exit(0)


def exits(recipe, run, emit):
    raise SystemExit(0)


def wrapped(recipe, run, emit):
    try:
        bug(recipe, run, emit)
    except ZeroDivisionError as error:
        raise sftrun.UserError("too hot") from error


def duplicate_gpu(recipe, run, emit):
    import torch

    first = "NCCL error in: /pytorch/NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN for details)"
    cause = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    cause += "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1b0"
    raise torch.distributed.DistBackendError(f"{first}\n{cause}")


def remote_error(recipe, run, emit):
    import torch

    raise torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error")


def mentions_nccl(recipe, run, emit):
    raise ValueError("NCCL_SOCKET_IFNAME: no such socket")


def joins(recipe, run, emit):
    from sftrun.training import ranks

    ranks.init(recipe)


def full_disk(recipe, run, emit):
    raise OSError(errno.ENOSPC, "No space left on device", "weights")


def full_for_safetensors(recipe, run, emit):
    import resource

    import torch
    from safetensors.torch import save_file

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    save_file({"weights": torch.zeros(1000)}, run.path / "weights.safetensors")


def read_only(recipe, run, emit):
    raise OSError(errno.EROFS, "Read-only file system", "weights")


def tidy(recipe, run, emit):
    def end(number, frame):
        time.sleep(0.5)
        (run.path / "tidied").touch()
        raise sftrun.errors.Interrupted

    signal.signal(signal.SIGTERM, end)
    emit(Custom(name="ready"))
    wait_for_end()


def stopped(recipe, run, emit):
    raise sftrun.errors.Interrupted


def waiting(recipe, run, emit):
    emit(Custom(name="ready"))
    wait_for_end()


def stubborn(recipe, run, emit):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    waiting(recipe, run, emit)


def crashed(recipe, run, emit):
    os.write(2, b"a library's last words\n")
    os._exit(7)


# Targets for ranks, for tests/test_elastic.py.


def is_alive(pid):
    """Returns True if a process is running; a zombie is not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def is_second():
    return os.environ["RANK"] == "1"


def attempt():
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def ranked(recipe, run, emit):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "OMP_NUM_THREADS")
    emit(Custom(name="rank", data={name: int(os.environ[name]) for name in names}))


def alone(recipe, run, emit):
    emit(
        Custom(
            name="rank",
            data={"variables": sorted(name for name in os.environ if name.endswith(("RANK", "WORLD_SIZE")))},
        )
    )


def second_fails(recipe, run, emit):
    """Rank 1 fails as the recipe's description says; other ranks wait."""
    if is_second():
        globals()[recipe.description](recipe, run, emit)
    wait_for_end()


def fails_once(recipe, run, emit):
    """Rank 1 fails in the first attempt, once every rank has begun; other ranks wait."""
    emit(Custom(name="began", data={"attempt": attempt()}))
    if attempt() == 0:
        (run.path / f"began-{os.environ['RANK']}").touch()
        while len(list(run.path.glob("began-*"))) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.01)
        second_fails(recipe, run, emit)


def lost(recipe, run, emit):
    """Rank 0 reports a lost connection first, and rank 1 the cause."""
    first = run.path / "first"
    if is_second():
        while not first.is_file() or is_alive(first.read_text()):
            time.sleep(0.01)
        user_error(recipe, run, emit)
    first.with_suffix(".new").write_text(str(os.getpid()))
    first.with_suffix(".new").replace(first)
    raise RuntimeError("[../third_party/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


def until_asked(recipe, run, emit):
    """Waits for a signal, as training does to write a checkpoint."""

    def stop(number, frame):
        (run.path / f"stopped-{os.environ['RANK']}").touch()
        raise sftrun.errors.Interrupted

    signal.signal(signal.SIGTERM, stop)
    present(run, emit)


def present(run, emit):
    (run.path / f"pid-{os.environ['RANK']}").write_text(f"{os.getpid()} {os.getppid()}")
    while len(list(run.path.glob("pid-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    emit(Custom(name="ready"))
    wait_for_end()


def stays(recipe, run, emit):
    present(run, emit)


def unwrapped(recipe, run, emit):
    """Checks a trainer that knows the world size, but has not wrapped the model."""
    from types import SimpleNamespace

    import torch

    from sftrun.training import ranks

    ranks.init(recipe)
    arguments = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    accelerator = SimpleNamespace(num_processes=int(recipe.description))
    model = torch.nn.Linear(1, 1)
    ranks.check_processes(SimpleNamespace(args=arguments, accelerator=accelerator, model_wrapped=model), recipe)


def shared_model(recipe, run, emit):
    """Loads a model as training with fsdp does, and gathers it on rank 0."""
    import torch
    from transformers import AutoModelForCausalLM

    from sftrun.training import base_model, ranks
    from sftrun.training.model import load
    from sftrun.training.sharding import fsdp
    from sftrun.training.sharding.empty import loads_weights

    ranks.init(recipe)
    empty = not loads_weights("fsdp", recipe, None)
    model = load.load_base(recipe, device=torch.device("cpu"), empty=empty)
    wanted = AutoModelForCausalLM.from_pretrained(base_model.location(recipe)).state_dict()
    before = ranks.all_gather(all(torch.equal(each, wanted[name]) for name, each in model.named_parameters()))
    fsdp.shard(model, torch.device("cpu"), half=None)
    whole = fsdp.gather_weights(model)
    buffers = ranks.all_gather([each.tolist() for each in model.buffers()])
    if ranks.is_first():
        same = all(torch.equal(each, wanted[name]) for name, each in whole.items())
        emit(Custom(name="shared", data={"loaded": before, "same": same, "buffers": buffers[0] == buffers[1]}))
    ranks.finish()


def gpus_seen(recipe, run, emit):
    emit(Custom(name="gpus", data={"count": sftrun.gpu_count()}))
