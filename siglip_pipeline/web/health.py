"""Health checks for a supervisor."""

from fastapi import APIRouter

from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.parameters import StrictRoute
from siglip_pipeline.web.schemas import ErrorAnswer, HealthAnswer
from siglip_pipeline.web.services import CurrentServices

router = APIRouter(tags=["health"], route_class=StrictRoute)


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> HealthAnswer:
    """Answer 200: the process is alive."""
    return HealthAnswer(status="ok")


@router.get(
    "/readyz",
    summary="Can searches be answered?",
    responses={503: {"model": ErrorAnswer, "description": "Not yet; the message says why"}},
)
def readyz(services: CurrentServices) -> HealthAnswer:
    """Answer 200 once an index is published, and the model loaded if it is loaded at start."""
    try:
        services.videos.count()
        if not services.is_ready():
            raise HttpError(503, "nothing is indexed yet", kind="NotReady")
    except SiglipPipelineError as error:
        raise HttpError(503, "the database does not answer", kind="NotReady") from error
    if services.settings.load_model_at_start and not services.model_loaded.is_set():
        raise HttpError(503, "the text tower is being loaded", kind="NotReady")
    return HealthAnswer(status="ok")
