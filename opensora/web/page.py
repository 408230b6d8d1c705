"""The page of `opensora web`: a form, the video that is being made, and the videos made before."""

import asyncio
import base64
import html
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.errors import OpenSoraError
from opensora.web.job_queue import Job, JobQueue
from opensora.web.sample_service import Form, Made, SampleService
from opensora.web.serve import literal_html
from opensora.web.uploads import UploadLimits, check_upload, upload_folder

if TYPE_CHECKING:
    import gradio

AS_TRAINED = "as trained"
RESOLUTIONS = (AS_TRAINED, "144p", "240p", "360p", "480p", "720p", "1080p", "2k")
ASPECT_RATIOS = (AS_TRAINED, "16:9", "9:16", "4:3", "3:4", "1:1", "21:9")
# choice of the page -> keys of the config for the first and the second file
CONDITIONS: dict[str, tuple[str, ...]] = {
    "text alone": (),
    "first frame": ("first_frame",),
    "last frame": ("last_frame",),
    "first and last frame": ("first_frame", "last_frame"),
    "extend a clip": ("extend",),
    "what came before a clip": ("extend",),
    "edit a clip": ("edit",),
}
_POLL = 0.2  # seconds between looks at a job
_MOST_VISITORS = 400  # who wait for a video at a time; more than the queue of jobs takes
_OWN_MODEL = "the config's"


def build_page(service: SampleService, queue: JobQueue, limits: UploadLimits = UploadLimits()) -> "gradio.Blocks":
    """The page. Its function `generate` is the HTTP API as well."""
    import gradio

    jobs: dict[str, Job] = {}  # session -> its latest job

    async def generate(
        prompt: str,
        negative_prompt: str,
        model: str,
        resolution: str,
        aspect_ratio: str,
        num_frames: str,
        steps: float | None,
        guidance_scale: float | None,
        seed: float | None,
        condition: str,
        first_file: str | None,
        second_file: str | None,
        strength: float,
        request: gradio.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Make one video. Yields its state, and once it is done the file, the videos made before, and the file of a picture."""
        user, session = _user(request), str(request.session_hash)
        try:
            form = form_of(
                prompt, negative_prompt, model, resolution, aspect_ratio, num_frames, steps, guidance_scale, seed
            )
            form |= _conditions(condition, (first_file, second_file), strength, limits)
            # What is wrong is said before the job waits. Files are read for it, so not in the server's own thread.
            await asyncio.to_thread(service.plan, form)
            job = queue.submit(user, form)
        except OpenSoraError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        jobs[session] = job
        began, shown, unchanged = time.monotonic(), "", [gradio.skip()] * 3
        try:
            while not job.finished.is_set():
                words = literal_html(_job_words(job, queue.before(job)))
                if words != shown:
                    yield words, *unchanged
                shown = words
                await asyncio.sleep(_POLL)
        except (asyncio.CancelledError, GeneratorExit):  # the visitor left
            queue.cancel(job)
            raise
        finally:
            if jobs.get(session) is job:
                del jobs[session]
        if job.state == "failed":
            raise gradio.Error(job.error, print_exception=False)
        if job.state == "cancelled":
            yield literal_html('<p class="job">cancelled</p>'), *unchanged
            return
        seconds = time.monotonic() - began
        words = f"made in {seconds:.1f} s: {job.result.name}"
        try:
            service.remember(Made(job.result, form, user, seconds))
        except OpenSoraError as error:  # the video is there all the same
            words += f"; not among those made before: {error}"
        video, picture = _shown(job.result)
        yield literal_html(f'<p class="job">{html.escape(words)}</p>'), video, _gallery(service, user), picture

    def cancel(request: gradio.Request) -> None:
        job = jobs.get(str(request.session_hash))
        if job is not None:
            queue.cancel(job)

    def opened(request: gradio.Request) -> tuple[Any, ...]:
        """The videos of before. The button waits for it: gradio drops answers while the page is still being built."""
        return _gallery(service, _user(request)), gradio.update(interactive=True)

    def pick(event: gradio.SelectData, request: gradio.Request) -> tuple[Any, ...]:
        """Show a video of before with its settings; they are kept by the page for the buttons."""
        shown = service.history(_user(request))
        if not 0 <= event.index < len(shown):
            return gradio.skip(), gradio.skip(), gradio.skip()
        made = shown[event.index]
        video, picture = _shown(made.path)
        return video, picture, made.form

    def same_settings(form: dict[str, Any]) -> tuple[Any, ...]:
        """The values of the form's fields; files are not among them."""
        if not form:
            raise gradio.Error("choose a video of before first", print_exception=False)
        return _fields(form)

    def fields_of_condition(condition: str) -> tuple[Any, ...]:
        count, is_edit = len(CONDITIONS[condition]), condition == "edit a clip"
        return gradio.update(visible=count > 0), gradio.update(visible=count > 1), gradio.update(visible=is_edit)

    run = service.run
    models = [_OWN_MODEL, *service.runs]
    suffixes = [*IMAGE_SUFFIXES, *VIDEO_SUFFIXES]
    with gradio.Blocks(title="opensora", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        picked = gradio.State({})
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                prompt = gradio.Textbox(label="Prompt", lines=3, elem_id="prompt", autofocus=True)
                if run.prompt:
                    gradio.Examples([[text] for text in run.prompt[:6]], [prompt], label="Examples")
                negative_prompt = gradio.Textbox(label="Negative prompt", elem_id="negative")
                with gradio.Row():
                    make = gradio.Button(
                        "Generate", variant="primary", elem_id="generate", min_width=120, interactive=False
                    )
                    stop = gradio.Button("Cancel", elem_id="cancel", min_width=80)
                with gradio.Row():
                    resolution = _choice("Resolution", RESOLUTIONS)
                    aspect_ratio = _choice("Width to height", ASPECT_RATIOS)
                    num_frames = gradio.Textbox(
                        label="Length", placeholder="as trained, 16 or 4s", elem_id="frames", min_width=100
                    )
                with gradio.Row():
                    steps = gradio.Number(label="Steps", precision=0, minimum=1, value=service.steps, min_width=80)
                    guidance = gradio.Number(label="Guidance", minimum=0, value=service.guidance_scale, min_width=80)
                    seed = gradio.Number(label="Seed", precision=0, value=run.seed, elem_id="seed", min_width=80)
                model = gradio.Dropdown(models, value=_OWN_MODEL, label="Model", visible=len(models) > 1)
                condition = gradio.Dropdown(
                    list(CONDITIONS), value="text alone", label="Start from", elem_id="condition"
                )
                first_file = gradio.File(
                    label="Picture or clip", file_types=suffixes, type="filepath", visible=False, elem_id="first-file"
                )
                second_file = gradio.File(
                    label="Last frame", file_types=suffixes, type="filepath", visible=False, elem_id="second-file"
                )
                strength = gradio.Slider(0.05, 1, value=0.5, label="Strength of the edit", visible=False)
            with gradio.Column(scale=3, min_width=320):
                state = gradio.HTML(elem_id="state", js_on_load=None)
                with gradio.Row():
                    video = gradio.Video(
                        label="Video", autoplay=True, loop=True, elem_id="video", interactive=False, min_width=240
                    )
                    other = gradio.Video(
                        label="Chosen below",
                        autoplay=True,
                        loop=True,
                        elem_id="other",
                        interactive=False,
                        min_width=240,
                    )
                with gradio.Row():  # in place of videos of one frame, and of gif
                    picture = gradio.Image(label="Picture", visible=False, elem_id="picture", interactive=False)
                    other_picture = gradio.Image(label="Chosen below", visible=False, interactive=False)
                before = gradio.Gallery(
                    label="Made before", columns=4, elem_id="before", allow_preview=False, interactive=False, height=240
                )
                again = gradio.Button("Same settings as the chosen one", size="sm", elem_id="same")

        fields = [prompt, negative_prompt, model, resolution, aspect_ratio, num_frames, steps, guidance, seed]
        gradio.on(
            [make.click],
            generate,
            [*fields, condition, first_file, second_file, strength],
            [state, video, before, picture],
            api_name="generate",
            concurrency_limit=None,  # they wait in the queue of jobs, whose order is fair
            show_progress="hidden",
            trigger_mode="multiple",
        )
        stop.click(cancel, api_name="cancel", queue=False)
        blocks.load(opened, None, [before, make], api_visibility="private", show_progress="hidden")
        before.select(pick, None, [other, other_picture, picked], api_visibility="private", show_progress="hidden")
        again.click(same_settings, picked, fields, api_visibility="private", show_progress="hidden")
        condition.change(
            fields_of_condition,
            condition,
            [first_file, second_file, strength],
            api_visibility="private",
            show_progress="hidden",
        )
    # Visitors who wait take no thread. With gradio's own 40, the others would wait in its queue, where the order is not fair.
    blocks.max_threads = _MOST_VISITORS
    blocks.queue()
    return blocks


def form_of(
    prompt: str,
    negative_prompt: str = "",
    model: str = _OWN_MODEL,
    resolution: str = AS_TRAINED,
    aspect_ratio: str = AS_TRAINED,
    num_frames: str = "",
    steps: float | None = None,
    guidance_scale: float | None = None,
    seed: float | None = None,
) -> dict[str, Any]:
    """The fields of the page as keys of a config; a field that is left as it was is not among them."""
    length = str(num_frames or "").strip()
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt or None,
        "load": None if model == _OWN_MODEL else model,
        "resolution": None if resolution == AS_TRAINED else resolution,
        "aspect_ratio": None if aspect_ratio == AS_TRAINED else aspect_ratio,
        "num_frames": int(length) if length.isdecimal() else length or None,
        "scheduler.num_sampling_steps": None if steps is None else int(steps),
        "scheduler.cfg_scale": None if guidance_scale is None else float(guidance_scale),
        "seed": None if seed is None else int(seed),
    }
    return {key: value for key, value in values.items() if value is not None}


def _fields(form: Form) -> tuple[Any, ...]:
    """The inverse of form_of."""
    return (
        form.get("prompt", ""),
        form.get("negative_prompt", ""),
        form.get("load", _OWN_MODEL),
        form.get("resolution", AS_TRAINED),
        form.get("aspect_ratio", AS_TRAINED),
        str(form.get("num_frames", "")),
        form.get("scheduler.num_sampling_steps"),
        form.get("scheduler.cfg_scale"),
        form.get("seed"),
    )


def _conditions(
    condition: str, sent: tuple[str | None, str | None], strength: float, limits: UploadLimits
) -> dict[str, Any]:
    """The keys of a choice with the files that were sent, which are checked. Raises BadClip."""
    import gradio

    keys = CONDITIONS.get(condition)
    if keys is None:
        raise gradio.Error(f"start from: found {condition!r}; allowed: {', '.join(CONDITIONS)}", print_exception=False)
    values: dict[str, Any] = {}
    for key, path in zip(keys, sent):
        if path is None:
            raise gradio.Error(f"{condition}: no file was sent for it; choose one", print_exception=False)
        values[key] = check_upload(path, upload_folder(), limits)
    if condition == "what came before a clip":
        values["backward"] = True
    if condition == "edit a clip":
        values["strength"] = float(strength)
    return values


def _choice(label: str, values: tuple[str, ...]) -> "gradio.Dropdown":
    import gradio

    return gradio.Dropdown(list(values), value=values[0], label=label, min_width=100)


def _user(request: "gradio.Request") -> str:
    """The name that the visitor signed in with; empty, one user, where the page has no accounts."""
    return str(request.username or "")


def _gallery(service: SampleService, user: str) -> list[tuple[str, str]]:
    return [(_copy(made.path), str(made.form.get("prompt", ""))) for made in service.history(user)]


def _copy(path: Path) -> str:
    """A copy in gradio's private folder, under a name that holds a hash: visitors reach no file of save_dir by its name."""
    from gradio.processing_utils import save_file_to_cache

    return save_file_to_cache(path, upload_folder())


def _shown(path: Path) -> tuple[Any, Any]:
    """Updates of the fields for a video and for a picture, of which one is shown."""
    import gradio

    is_picture = path.suffix in (".png", ".gif")
    copy = _copy(path)
    return (
        gradio.update(value=None if is_picture else copy, visible=not is_picture),
        gradio.update(value=copy if is_picture else None, visible=is_picture),
    )


def _job_words(job: Job, before: int) -> str:
    """The state of a job as HTML."""
    if job.state == "waiting":
        return f'<p class="job">waiting; {before} video{"s" * (before != 1)} before this one</p>'
    if not job.steps:
        return '<p class="job">getting ready</p>'
    left = job.seconds_left()
    words = f"step {job.done} of {job.steps}" + ("" if left is None else f", {left:.0f} s left")
    share = 100 * job.done / job.steps
    bar = f'<p class="job">{words}</p><div class="progress"><div style="width:{share:.0f}%"></div></div>'
    if job.preview is None:
        return bar
    picture = base64.b64encode(job.preview).decode()
    return f'{bar}<img class="preview" alt="preview" src="data:image/jpeg;base64,{picture}">'
