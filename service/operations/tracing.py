"""Trace context: the caller's `traceparent`, and a span a request where OpenTelemetry is installed.

Exporting is the operator's: `opentelemetry-instrument diptych serve ...` sets a provider, without
one spans are no-ops. A span names the route's template, never a path, a query or a body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

# https://www.w3.org/TR/trace-context/: version, trace, parent, flags; all zeros name nothing
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def traceparent_of(scope: Scope) -> str | None:
    """The header, if there is exactly one and it is well-formed."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    if len(given) != 1 or not _TRACEPARENT.fullmatch(given[0]):
        return None
    return str(given[0], "ascii")


@dataclass(slots=True)
class Trace:
    """What is known of a request's trace while it is answered.

    Attributes:
        trace_id: 32 hex digits, the caller's or a recording span's; None without either.
        traceparent: for the answer's header and whatever is called on behalf of the request.
    """

    trace_id: str | None = None
    traceparent: str | None = None
    _span: Any = None

    def finish(self, route: str, method: str, status: int, timings: Mapping[str, float]) -> None:
        """Name the span after what is known only now."""
        if self._span is None:
            return
        self._span.update_name(f"{method} {route}")
        self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.request.method", method)
        self._span.set_attribute("http.response.status_code", status)
        for stage, took_ms in timings.items():
            self._span.set_attribute(f"diptych.{stage}_ms", took_ms)
        if status >= 500:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR))


class Tracer:
    """Traces of requests, through OpenTelemetry if it is there."""

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            self._api = None
        else:
            self._api = trace
            self._extract = TraceContextTextMapPropagator().extract

    @contextmanager
    def request(self, scope: Scope, request_id: str) -> Iterator[Trace]:
        """The trace of one request, current within the block."""
        parent = traceparent_of(scope)
        caller = None if parent is None else parent[3:35]
        api = self._api
        # the stand-in of a process in which nobody has set a provider: its spans are nobody's
        if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
            yield Trace(caller, parent)
            return
        context = self._extract({} if parent is None else {"traceparent": parent})
        # by name at each request: the provider may be set after this was made
        tracer = api.get_tracer("diptych")
        with tracer.start_as_current_span(
            scope["method"],
            context=context,
            kind=api.SpanKind.SERVER,
            attributes={"diptych.request_id": request_id},
            record_exception=False,  # its text may quote what was asked
        ) as span:
            known = span.get_span_context()
            if known.is_valid and span.is_recording():
                trace_id = f"{known.trace_id:032x}"
                parent = f"00-{trace_id}-{known.span_id:016x}-{int(known.trace_flags):02x}"
                yield Trace(trace_id, parent, span)
            else:
                yield Trace(caller, parent)
