"""Models of the Hugging Face hub: whether one can be had, before a library that loads it tries.

transformers asks the hub for one file after another and repeats each question five times. Here it
is asked once, for what `from_pretrained` opens first.
"""

from __future__ import annotations

from pathlib import Path


def cached() -> list[str]:
    """Ids of the models in the hub's cache on this machine, sorted."""
    from huggingface_hub import constants

    places = Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots")
    return sorted(place.parent.name.removeprefix("models--").replace("--", "/") for place in places)


def cached_file(hub_id: str, name: str) -> Path | None:
    """A file of a model, if it is in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def objection(hub_id: str) -> str | None:
    """Why a model cannot be had; None if it is in the cache, or if nothing speaks against it.

    Asks the hub (`HF_ENDPOINT`) once if the model is not in the cache, and waits for an answer for
    `HF_HUB_ETAG_TIMEOUT` seconds, 10 if it is not set.

    Args:
        hub_id: Such as "org/name".
    """
    import httpx
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    try:
        files = ("config.json", "adapter_config.json")
        if any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files):
            return None
    except HFValidationError:
        return "no id of the hub has that form"
    missing = f"it is not in the hub's cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        return f"{missing}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    hub = constants.ENDPOINT
    try:
        url = hf_hub_url(hub_id, files[0])
        answer = get_session().head(url, headers=build_hf_headers(), timeout=seconds)
        hf_raise_for_status(answer)
    except GatedRepoError:
        return f"{hub} keeps it for those who were let in: ask there, then set HF_TOKEN"
    except RepositoryNotFoundError:
        return f"{hub} has no such model, or it is private and HF_TOKEN is not set to a key to it"
    except HfHubHTTPError:
        return None  # it is there without that file, or the hub is in trouble: the loader says it
    except httpx.TimeoutException:
        return f"{missing}, and {hub} did not answer in {seconds} seconds"
    except httpx.HTTPError as error:
        return f"{missing}, and {hub} cannot be reached: {str(error) or type(error).__name__}"
    return None
