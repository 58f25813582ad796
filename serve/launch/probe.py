"""Asks a server's health as Kubernetes' gRPC probe does, on rank 0; other ranks have no server.

`python -m serve.launch.probe --port 50051 --service distkv.v1.Inference`: 0 where it is SERVING.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distkv_jax.environment import variables
from serve.launch.detect import VARIABLES

TIMEOUT_S = 3.0


def main(argv: Sequence[str]) -> int:
    """Ask, once; says what is wrong, which Kubernetes shows among a pod's events."""
    parser = argparse.ArgumentParser(prog="probe", allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--service", default="")
    args = parser.parse_args(argv)
    (index,) = VARIABLES["job"]
    if variables(index).get(index, "0") != "0":
        return 0
    address = f"127.0.0.1:{args.port}"
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        # Its methods are made when it is, out of a type checker's sight.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=args.service)
        try:
            answer = stub.Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            print(f"{args.service or 'server'}: {error.code().name} {error.details()}")
            return 1
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{args.service or 'server'}: {name}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
