"""What is checked of a valid job's params: against its provider, and against its `response`."""

from __future__ import annotations

from batchchat.errors import JobError
from batchchat.job.model import Job
from batchchat.job.origin import combined
from batchchat.job.sections import Longer
from batchchat.providers import Provider


def check_params(job: Job, provider: Provider) -> None:
    """Refuse the params that the provider does not support, and those that contradict `response`.

    Raises JobError, with the line that sets each.
    """
    refused = _response_errors(job)
    refused += [
        job.error(
            f"{provider.name} does not support {name}; what its server would do with it is not documented",
            "params",
            name,
            remedy=f"Remove params.{name} from the job.",
        )
        for name in job.params.as_body()
        if name in provider.unsupported
    ]
    if refused:
        raise combined(refused)


def _response_errors(job: Job) -> list[JobError]:
    """Return what is wrong between `response` and `params`."""
    response, params = job.response, job.params
    refused = []
    # The schema makes a `response_format` of its own, and a request has only one.
    if response.spec is not None and params.response_format is not None:
        message = "is set by response.schema already"
        refused.append(job.error(message, "params", "response_format", remedy="Keep one of the two."))
    if response.spec is None:
        useless = sorted(response.model_fields_set & {"mode", "name"})
        if response.confidence is not None:
            refused.append(
                job.error(
                    "is measured on the fields of a schema, and there is none",
                    "response",
                    "confidence",
                    remedy="Give response.schema with the labels as an enum, such as "
                    "{type: object, properties: {label: {enum: [yes, no]}}, required: [label]}.",
                )
            )
        if "corrections" in response.model_fields_set and not params.tools:
            useless.append("corrections")
        refused += [
            job.error(
                "says how answers are held to a schema, and there is none",
                "response",
                name,
                remedy="Give response.schema, or leave this out.",
            )
            for name in useless
        ]
    refused += _confidence_errors(job)
    if isinstance(response.truncated, Longer):
        more = response.truncated.retry_with_max_tokens
        bound = params.max_completion_tokens if params.max_completion_tokens is not None else params.max_tokens
        # A template gives another bound for each row: only a fixed one can be compared here.
        if isinstance(bound, int) and more <= bound:
            refused.append(
                job.error(
                    f"must be more than the {bound} tokens of the first try, not {more}",
                    *("response", "truncated", "retry_with_max_tokens"),
                    remedy="A request is never sent again as it was: allow more, or take `truncated: fail`.",
                )
            )
    return refused


def _confidence_errors(job: Job) -> list[JobError]:
    """Return what is wrong between `response.confidence`, the samples and the params."""
    method, place = job.response.confidence, ("response", "confidence")
    if method == "samples" and job.samples < 2:
        message = "counts the samples of a row that agree, and there is one sample a row"
        remedy = "Give `samples: 5`, or measure it by logprobs or {field: NAME}."
        return [job.error(message, *place, remedy=remedy)]
    if method != "logprobs":
        return []
    refused = []
    unsupported, provider = job.resolved_provider().unsupported, job.resolved_provider().name
    if "logprobs" in unsupported:
        message = f"needs the log probabilities of tokens, and {provider} does not give them"
        remedy = "Measure it by `samples`, or by {field: NAME}."
        refused.append(job.error(message, *place, remedy=remedy))
    if job.params.logprobs is False:
        message = "is false, and response.confidence needs log probabilities"
        refused.append(job.error(message, "params", "logprobs", remedy="Leave params.logprobs out."))
    return refused
