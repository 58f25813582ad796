"""What can be written on the command line, and the help that teaches it."""

import argparse
import dataclasses
from pathlib import Path

import distkv_jax
from distkv_jax.cli.arguments import Parser, add_fields
from distkv_jax.cli.logs import LogSettings
from distkv_jax.engine.config import EngineConfig
from distkv_jax.engine.sampling_params import SamplingParams
from serve.bench.settings import BenchSettings
from serve.client_settings import ClientSettings
from serve.launch.settings import (
    CloudTpuSettings,
    KubernetesSettings,
    LaunchSettings,
    RestartSettings,
    SlurmSettings,
)
from serve.settings import ServerSettings
from serve.world.settings import WorldSettings

MODEL_HELP = (
    "tiny, the model that ships with the package (the default); a folder in the layout of "
    "Hugging Face; or a folder that `distkv convert` wrote. Nothing is downloaded"
)
MESH_HELP = (
    "a name from `distkv meshes`, a TOML file, or auto (the default): the accelerators there are, "
    "else cpu-1. cpu-8 simulates eight devices"
)
DTYPE_HELP = (
    "type of weights and KV: float32, bfloat16, float16, or auto (the default): the checkpoint's "
    "own, on CPU float32"
)

TOP_EXAMPLES = """\
examples:
  distkv generate --mesh cpu-8 --stats          text from the tiny model, and where its KV lives
  distkv fit tiny --mesh cpu-8                  what context and concurrency fit, before loading
  distkv COMMAND --help                         every setting of a command, with its default
"""
GENERATE_EXAMPLES = """\
examples:
  distkv generate "It was a bright day" "In the beginning" --max-tokens 40 --temperature 0
  distkv generate --prompt-file book.txt --mesh cpu-8 --block-size 16 --num-blocks 32 --stats
  distkv generate "Dear Sir," --stream -n 2 --seed 7 --stop "." --max-tokens none
  distkv generate --token-ids 17,42,8 --json | python -m json.tool
  echo "Once upon a time" | distkv generate --quiet

Text goes to standard output, everything about the run to standard error. --num-blocks is for each
instance: a request longer than num_blocks x block_size tokens takes blocks of other instances.
"""
CHAT_EXAMPLES = """\
examples:
  distkv chat --model ./my-model --system "Answer in one sentence."
  printf 'Good morning.\\nHow are you?\\n' | distkv chat --quiet

In the conversation: /reset forgets what was said, /exit or end of file (Ctrl-D) leaves.
"""
FIT_EXAMPLES = """\
examples:
  distkv fit ./llama-8b --mesh h100-8
  distkv fit ./llama-8b/config.json --mesh v5e-16 --context 32768 --context 131072
  distkv fit tiny --mesh cpu-8 --block-size 16 --num-blocks 32
  distkv fit llama2-7b --mesh v5p-64 --aot

Reads config.json alone: no weights, no devices. Not counted are the programs' temporaries, known
once compiled: --device-memory-fraction leaves them room, and --aot has the TPU's compiler count
them, in minutes on any machine with `pip install 'distkv-jax[aot-tpu]'`.
"""
FIT_MODEL_HELP = (
    "as --model; the path of a config.json; or a known shape: llama2-7b, llama2-13b, llama2-70b"
)
CONVERT_EXAMPLES = """\
example:
  distkv convert ./llama-8b ./llama-8b-orbax && distkv generate --model ./llama-8b-orbax "Hello"
"""
SERVE_EXAMPLES = """\
examples:
  distkv serve tiny --mesh cpu-8 --block-size 16 --num-blocks 64
  distkv serve ./llama-8b --mesh h100-8 --port 50051 --api-key-file keys.txt
  distkv serve ./llama-8b --host 0.0.0.0 --api-key-file keys.txt --tls-cert c.pem --tls-key k.pem

Then, from another terminal: distkv client stream "Once upon a time"
SIGTERM or Ctrl-C lets accepted requests finish and stops; a second one stops at once. The exit
code is 0 if nothing was lost.
"""
LAUNCH_EXAMPLES = """\
examples, on this machine:
  distkv launch --hosts 2 tiny --mesh cpu-8 --block-size 16 --num-blocks 64
  distkv launch --hosts 4 --dry-run tiny --mesh cpu-8
  distkv launch --hosts 2 -- --mesh cpu-2 --num-blocks 32

over the system's ssh, to hosts that have the same release and the model at the same path:
  distkv launch --ssh gpu1,gpu2 --python .venv/bin/python ./llama-8b --mesh mesh.toml
  distkv launch --ssh hosts.txt --folder ~/distkv --env NCCL_SOCKET_IFNAME=eth1 --dry-run -- tiny

printed, to be read and then submitted, applied or run:
  distkv launch --slurm --hosts 4 --gpus-per-node 8 ./llama-8b --mesh mesh.toml > job.sbatch
  distkv launch --kubernetes lws --hosts 2 --image registry/distkv:1 --resource nvidia.com/gpu=8
                                 /models/llama-8b --mesh /models/mesh.toml > distkv.yaml
  distkv launch --cloud-tpu my-slice --hosts 4 --zone us-west4-a tiny --mesh v5e-16 > start.sh

What follows the model is for `distkv serve`. Rank 0 serves, on the first host, and listens to other
machines only where `distkv serve` is told so. Every line begins with the rank that said it.
SIGTERM or Ctrl-C goes to rank 0, which drains, and the others end with it. Once it serves, on this
machine or over ssh, a rank that dies is started again, and when rank 0 dies the whole service is;
the exit code says how the last one ended. The secret by which the processes know each other is
made anew each time; it goes through files and pipes that only their user reads, never through a
command line. One page for each way: docs/operations/.
"""
CLIENT_EXAMPLES = """\
examples:
  distkv client generate "It was a bright day" "In the beginning" --max-tokens 40 --temperature 0
  distkv client stream "Dear Sir," --seed 7 --stop "." --request-id letter-1
  distkv client abort letter-1
  distkv client stream "Dear Sir," --durable --request-id letter-2
  distkv client attach letter-2 --offset 40
  distkv client pool --server gpu7:50051 --tls-ca ca.pem --api-key-file key.txt
"""
WATCH_EXAMPLES = """\
examples:
  distkv top
  distkv top --server gpu7:50051 --tls-ca ca.pem --api-key-file key.txt --interval 0.5
  distkv top --once > state.txt

Shows what the server's own page at / shows: blocks by instance and request, debts, rates and
latencies. Where there are API keys it needs an admin's. Ctrl-C leaves.
"""
BENCH_EXAMPLES = """\
examples:
  distkv bench serve --port 8000 --tokenizer ./llama-8b --num-prompts 100 --request-rate 4
  distkv bench serve --backend grpc --random-input-len 128 --random-output-len 32 --ignore-eos
  distkv bench serve --dataset-name mooncake --dataset-path trace.jsonl --time-scale 0.1
  distkv bench serve --base-url http://gpu7:8000 --goodput ttft:500 tpot:50 --save-result

The server may be any that speaks OpenAI's completions; names and definitions of the figures are
those of `vllm bench serve`. A key is taken from DISTKV_API_KEY, else OPENAI_API_KEY. The exit code
is 1 if a request failed. Ctrl-C prints what was measured so far.
"""
CHAT_MAX_TOKENS = 256
FIT_FIELDS = (
    "block_size",
    "num_blocks",
    "host_blocks",
    "kv_cache_dtype",
    "device_memory_fraction",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "pooling",
    "micro_attention",
)


def build_parser() -> Parser:
    """Build the whole command line; `command` names the module that runs it."""
    parser = Parser(
        prog="distkv",
        usage="%(prog)s COMMAND [ARGUMENTS]",
        description="Generate text over a KV cache that is pooled across a device mesh.",
        epilog=TOP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=distkv_jax.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(
        _command(
            commands, "generate", "[PROMPT ...] [SETTINGS]", "complete prompts", GENERATE_EXAMPLES
        )
    )
    _add_chat(_command(commands, "chat", "[SETTINGS]", "talk to a model", CHAT_EXAMPLES))
    what = "serve a model by gRPC"
    _add_serve(_command(commands, "serve", "[MODEL] [SETTINGS]", what, SERVE_EXAMPLES))
    what = "serve with several processes, on this machine or on several"
    usage = "[--hosts N] [WAY] [--dry-run] [SETTINGS] [MODEL] [SERVE SETTINGS]"
    _add_launch(_command(commands, "launch", usage, what, LAUNCH_EXAMPLES))
    what = "talk to a server"
    _add_client(_command(commands, "client", "ACTION [SETTINGS]", what, CLIENT_EXAMPLES))
    what = "watch a server at work"
    _add_top(_command(commands, "top", "[SETTINGS]", what, WATCH_EXAMPLES))
    what = "measure a server under load"
    _add_bench(_command(commands, "bench", "serve [SETTINGS]", what, BENCH_EXAMPLES))
    what = "say what fits on a mesh, before loading"
    _add_fit(_command(commands, "fit", "MODEL --mesh MESH [SETTINGS]", what, FIT_EXAMPLES))
    what = "write a checkpoint that restores onto any mesh"
    convert = _command(commands, "convert", "SRC DST", what, CONVERT_EXAMPLES)
    convert.add_argument("source", metavar="SRC", help="a folder in the layout of Hugging Face")
    convert.add_argument("target", metavar="DST", help="a folder that does not exist yet")
    _command(commands, "meshes", "", "list the meshes that --mesh knows by name")
    return parser


def _command(
    commands: "argparse._SubParsersAction[Parser]",
    name: str,
    arguments: str,
    summary: str,
    examples: str = "",
) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        usage=f"%(prog)s {arguments}".rstrip(),
        description=f"{summary.capitalize()}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_generate(parser: Parser) -> None:
    _add_prompts(parser)
    form = parser.add_argument_group("output").add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print tokens as they come")
    form.add_argument("--json", action="store_true", help="print one JSON object for each prompt")
    _add_reports(parser)
    _add_engine(parser)
    add_fields(parser, "sampling", SamplingParams)


def _add_prompts(parser: Parser) -> None:
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="texts to continue, all at once; without one, standard input, on a terminal examples",
    )
    parser.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a UTF-8 file that is one more prompt; may be given several times",
    )
    parser.add_argument(
        "--token-ids",
        action="store_true",
        help="prompts are token ids, separated by commas or spaces, and ids are printed",
    )


def _add_serve(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=MODEL_HELP
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bars and no KV capacity on start"
    )
    add_fields(parser, "server", ServerSettings)
    add_fields(parser, "log", LogSettings)
    add_fields(parser, "several hosts", WorldSettings)
    _add_engine(parser, has_model=False)


def _add_launch(parser: Parser) -> None:
    parser.add_argument(
        "--hosts", type=int, metavar="N", help="processes, each for a host; with --ssh not needed"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands, and start nothing; what is not on this machine or over ssh is "
        "printed anyway",
    )
    group = parser.add_argument_group("ways", "without one of them all processes run here")
    ways = group.add_mutually_exclusive_group()
    what = "a file with a host in each line, or HOST,HOST,...; the first one leads"
    ways.add_argument("--ssh", metavar="HOSTS", help=what)
    ways.add_argument("--slurm", action="store_true", help="print a script for sbatch")
    what = "print manifests: a LeaderWorkerSet, or an Indexed Job with its Services"
    ways.add_argument("--kubernetes", choices=("lws", "job"), help=what)
    what = "print a script of gcloud's for the hosts of a slice"
    ways.add_argument("--cloud-tpu", metavar="SLICE", help=what)
    add_fields(parser, "on this machine or over ssh", RestartSettings)
    add_fields(parser, "on other machines", LaunchSettings)
    add_fields(parser, "slurm", SlurmSettings)
    add_fields(parser, "kubernetes", KubernetesSettings)
    add_fields(parser, "cloud TPU", CloudTpuSettings)
    parser.add_argument(
        "serve", nargs=argparse.REMAINDER, metavar="MODEL", help="as after `distkv serve`"
    )


def _add_client(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    generate = _command(actions, "generate", "[PROMPT ...] [SETTINGS]", "complete prompts")
    stream = _command(actions, "stream", "[PROMPT ...] [SETTINGS]", "print text as it comes")
    generate.add_argument(
        "--json", action="store_true", help="print one JSON object for each prompt"
    )
    stream.add_argument(
        "--request-id", default="", metavar="NAME", help="a name to abort or attach to it by"
    )
    stream.add_argument(
        "--durable",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="have the server keep it: it goes on when this command or the server dies (default: "
        "as the server is set)",
    )
    for action in (generate, stream):
        _add_prompts(action)
        action.add_argument(
            "--priority",
            default=0,
            type=int,
            metavar="N",
            help="lower runs first, where the server schedules by priority (default: 0)",
        )
    what = "print what a durable request gave and gives"
    attach = _command(actions, "attach", "REQUEST_ID [SETTINGS]", what)
    attach.add_argument("request_id", metavar="REQUEST_ID", help="as the request was named")
    attach.add_argument(
        "--offset",
        default=0,
        type=int,
        metavar="N",
        help="tokens of the first sample to leave out (default: 0)",
    )
    attach.add_argument("--token-ids", action="store_true", help="print token ids, not text")
    abort = _command(actions, "abort", "REQUEST_ID [SETTINGS]", "end a request")
    abort.add_argument("request_id", metavar="REQUEST_ID", help="as the request was named")
    info = _command(actions, "info", "[SETTINGS]", "print what is served")
    pool = _command(actions, "pool", "[SETTINGS]", "print where every block is")
    load = _command(actions, "load", "[SETTINGS]", "print how busy the server is")
    what = "have the server trace itself with JAX's profiler, and print the folder"
    profile = _command(actions, "profile", "[SETTINGS]", what)
    profile.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        help="how long, 0.1 to 60 (default: the server's, 3); it needs a server with --profile-dir",
    )
    drain = _command(actions, "drain", "[SETTINGS]", "stop the server when requests have ended")
    drain.add_argument(
        "--grace-s",
        type=float,
        metavar="X",
        help="seconds that accepted requests have (default: the server's setting)",
    )
    # Never the key itself: other users of the machine see command lines.
    shown = [field.name for field in dataclasses.fields(ClientSettings) if field.name != "api_key"]
    for action in (generate, stream, attach, abort, info, pool, load, profile, drain):
        add_fields(action, "connection", ClientSettings, only=shown)
    for action in (generate, stream):
        add_fields(action, "sampling", SamplingParams)


def _add_top(parser: Parser) -> None:
    parser.add_argument(
        "--interval",
        default=1.0,
        type=float,
        metavar="SECONDS",
        help="time between two pictures, 0.1 to 60 (default: 1)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one picture and leave; the default where output is not a terminal",
    )
    shown = [field.name for field in dataclasses.fields(ClientSettings) if field.name != "api_key"]
    add_fields(parser, "connection", ClientSettings, only=shown)


def _add_bench(parser: Parser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", prog="distkv bench"
    )
    what = "send requests to a server, and print what its users would see"
    serve = _command(actions, "serve", "[SETTINGS]", what, BENCH_EXAMPLES)
    serve.add_argument("--quiet", action="store_true", help="no progress bar")
    serve.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="limits of ttft, tpot or e2el in milliseconds within which a request counts as good",
    )
    serve.add_argument(
        "--metadata",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="entries to add to the JSON, as the commit of the server",
    )
    add_fields(serve, "measurement", BenchSettings)
    # Never the key itself: other users of the machine see command lines.
    shown = ("api_key_file", "tls_ca", "tls", "tls_cert", "tls_key")
    add_fields(serve, "connection", ClientSettings, only=shown)


def _add_chat(parser: Parser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before you speak")
    _add_reports(parser)
    _add_engine(parser)
    note = f"in a conversation max-tokens is {CHAT_MAX_TOKENS} by default"
    add_fields(parser, "sampling", SamplingParams, note=note)


def _add_reports(parser: Parser) -> None:
    parser.add_argument(
        "--stats",
        action="store_true",
        help="end with tables, and a picture of which instance held which request's blocks",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bars and no KV capacity on start"
    )


def _add_engine(parser: Parser, *, has_model: bool = True) -> None:
    model = parser.add_argument_group("model and mesh" if has_model else "mesh")
    if has_model:
        model.add_argument("--model", default=argparse.SUPPRESS, metavar="MODEL", help=MODEL_HELP)
    model.add_argument("--mesh", default=argparse.SUPPRESS, metavar="MESH", help=MESH_HELP)
    model.add_argument("--dtype", default=argparse.SUPPRESS, metavar="DTYPE", help=DTYPE_HELP)
    # --seed is the one of sampling.
    add_fields(parser, "engine", EngineConfig, renamed={"seed": "engine_seed"})


def _add_fit(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=FIT_MODEL_HELP)
    parser.add_argument("--mesh", required=True, metavar="MESH", help=MESH_HELP)
    parser.add_argument("--dtype", default="auto", metavar="DTYPE", help=DTYPE_HELP)
    parser.add_argument(
        "--context",
        action="append",
        type=int,
        metavar="N",
        help="tokens of a request to count how many fit at once; may be given several times",
    )
    parser.add_argument(
        "--device-memory-gib",
        type=float,
        metavar="X",
        help="memory of one device in GiB (default: what the mesh file says)",
    )
    parser.add_argument(
        "--aot",
        action="store_true",
        help="compile the largest steps for the mesh's TPU topology, and count what they need",
    )
    add_fields(parser, "engine", EngineConfig, only=FIT_FIELDS)
