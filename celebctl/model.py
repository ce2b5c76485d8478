"""The Python API of learning: a model, and the people it learns.

Example:
    >>> from celebctl import Model
    >>> from celebctl_models.mini.world import draw_portrait
    >>> model = Model.load("mini")
    >>> alice = model.learn(draw_portrait(7, 256), name="alice", method="instant")
    >>> alice.name, sum(part.size for part in alice.coefficients)
    ('alice', 1024)

Importing this module does not import torch; only training, drawing and export do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from celebctl.learning.subject import Subject, analyse_photo, warn_about_similar
from celebctl.library import Library, format_model_key
from celebctl.picture_kind import other_kind
from celebctl_runtime.errors import UsageError
from celebctl_runtime.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.basis.basis import CelebBasis
    from celebctl.basis.identity_vectors import Celebrities, Neighbour
    from celebctl.learning.config import LearnConfig
    from celebctl.learning.prepared import PreparedModel
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.checkpoints.lora import Lora
    from celebctl_models.checkpoints.registry import ModelCard
    from celebctl_models.checkpoints.token_tables import TokenTables
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.identity import Identity

    Photo = str | Path | Image | Subject

__all__ = ["Model", "Subject"]


class LearnOptions(TypedDict, total=False):
    """Options of `Model.learn`.

    Attributes:
        preset: "clean", or "faithful" to the published release.
        steps: Optimizer steps; None takes the preset's.
        seed: The same seed gives the same numbers; None takes the preset's.
        method: "train", or "instant": the output of the model's mapper, without training and without torch.
        config: All settings at once, instead of ``preset``, ``steps`` and ``seed``.
        consent: Recorded with the identity: "self", "synthetic" or "signed:FILE".
        progress: Receives ``loss``, ``likeness``, ``seconds`` and ``eta_seconds`` at every step.
        checkpoint: File that receives the state every 50 steps and on Ctrl-C; delete it when it has served.
        resume: Continue from ``checkpoint``.
        low_memory: A third of the memory, slower.
        force: Learn pictures of another kind than the model knows, too.
    """

    preset: str
    steps: int | None
    seed: int | None
    method: Literal["train", "instant"]
    config: LearnConfig | None
    consent: str | None
    progress: ProgressCallback
    checkpoint: Path | None
    resume: bool
    low_memory: bool
    force: bool


class BundleOptions(TypedDict, total=False):
    """Options of `Model.export`.

    Attributes:
        dtype: Of UNet and autoencoder.
        spare_rows: Token rows reserved for people, two each; None: 256, or twice as many as the people need.
        tiny_vae: A tiny autoencoder in place of the model's own, see
            `celebctl_models.checkpoints.tiny_autoencoders.load_tiny_autoencoder`.
        loras: LoRA files added to the weights of the bundle, in this order; the model itself stays as it is. See
            `celebctl_models.checkpoints.lora.Lora`.
    """

    dtype: Literal["fp32", "fp16"]
    spare_rows: int | None
    tiny_vae: str | Path | None
    loras: Sequence[Lora]


class Model:
    """A Stable Diffusion model and what belongs to it in a library: names, basis, mapper, face models.

    Create it with `Model.load`. Networks and tables are loaded when they are first used.
    """

    def __init__(
        self,
        source: str,
        device: str,
        face_models: str | None,
        library: Library,
        options: CheckpointOptions | None = None,
    ) -> None:
        self.source, self.device, self.library = source, device, library
        self._face_models, self._options = face_models, options
        self._prepared: dict[bool, PreparedModel[TokenTables]] = {}

    @classmethod
    def load(
        cls,
        model: str | Path = "mini",
        *,
        device: str = "auto",
        face_models: str | Path | None = None,
        library: Library | None = None,
        options: CheckpointOptions | None = None,
    ) -> Model:
        """Choose a model.

        Args:
            model: A known name ("mini", "sd15", ...), a diffusers folder, a checkpoint file or a Hugging Face id.
            device: Where networks run: "auto", "cpu" or "cuda".
            face_models: A pack ("buffalo_l", "antelopev2", "yunet_sface"), or a folder of face detector and recogniser.
                None uses the model's own, or the default pack.
            library: Where chosen names, caches and identities are; None is the user's library.
            options: What the model's files leave open, such as v-prediction of a single file.

        Returns:
            The model. Its files are read on first use, which raises NotFoundError, InvalidInputError (a kind of model
            that is not supported) or IntegrityError (damaged files).

        Example:
            >>> Model.load("mini").family
            'sd'
        """
        faces = None if face_models is None else str(face_models)
        return cls(str(model), device, faces, library or Library(), options)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.tables.name

    @property
    def family(self) -> str:
        """The family of text encoders, such as "sd"."""
        return self.tables.family

    @property
    def key(self) -> str:
        """The model key: the library's folder of people for this model, "<family>-<hash>"."""
        return format_model_key(self.tables.family, self.tables.table_hash)

    @property
    def basis(self) -> CelebBasis:
        """The celeb basis of the names chosen for the model, built once."""
        return self.prepared().basis

    @cached_property
    def parts(self) -> DiffusionParts:
        """The networks, on their device."""
        from celebctl.learning.device import select_device
        from celebctl_models.checkpoints.diffusion import load_parts

        device = select_device(self.device)
        return load_parts(self.source, dtype=device.dtype, device=device.device, options=self._options)

    @cached_property
    def tables(self) -> TokenTables:
        """The token tables: all that basis and instant learning need."""
        if "parts" in self.__dict__:
            return self.parts
        from celebctl_models.checkpoints.token_tables import load_tables

        return load_tables(self.source)

    @cached_property
    def card(self) -> ModelCard | None:
        """Facts about the model, without opening it; None for a file, or a model that is not on this machine."""
        from celebctl_models.checkpoints.registry import find_card

        return find_card(self.source)

    @cached_property
    def face_models(self) -> Path:
        """The folder of face detector and recogniser."""
        from celebctl_models.faces.packs import choose_face_models

        return choose_face_models(self._face_models, self.source, self.library.root)

    @cached_property
    def analyser(self) -> OnnxFaceAnalyser:
        """The face detector and recogniser."""
        from celebctl_models.faces.analysis import OnnxFaceAnalyser

        return OnnxFaceAnalyser(self.face_models)

    @property
    def chosen_names(self) -> Path | None:
        """The list of names chosen for this model in the library, None for the model's own."""
        from celebctl.basis.names import ChosenNames

        return ChosenNames(self.library.root, self.key).file

    def prepare(self, method: Literal["train", "instant"] = "train") -> Model:
        """Load now what ``method`` needs: networks, or token tables alone. Returns the model."""
        if method == "train":
            _ = self.parts
        _ = self.tables
        return self

    def trainable(self, *, release: bool = False) -> PreparedModel[DiffusionParts]:
        """The prepared model with its networks, for trainers."""
        from celebctl.learning.prepared import PreparedModel

        parts = self.parts
        ready = self.prepared(release=release)
        return PreparedModel(parts, ready.basis, ready.assets)

    def prepared(self, *, release: bool = False) -> PreparedModel[TokenTables]:
        """Tables, basis and files of the model, prepared once; ``release``: with the published release's basis."""
        from celebctl.learning.prepared import prepare

        if release not in self._prepared:
            cache, names = self.library.cache(), self.chosen_names
            prepared = prepare(self.tables, cache, names=names, face_models=self._find_face_models, release=release)
            self._prepared[release] = prepared
        return self._prepared[release]

    def refresh(self) -> None:
        """Look up names, faces and mappers in the library again, after they changed."""
        self._prepared.clear()
        self.__dict__.pop("celebrities", None)

    def _find_face_models(self) -> Path:
        return self.face_models

    def analyse(self, photo: Photo, *, name: str = "", face: int | None = None, force: bool = False) -> Subject:
        """Find the face to learn from in a photo.

        Args:
            photo: A file, or an RGB image of any size.
            name: The person's name; `learn` can set it later. Empty: the file's name without its ending.
            face: Which face, counted from 1 at the left, where the photo shows several.
            force: Accept a picture of another kind than the model knows.

        Returns:
            The photo with its face, to pass to `learn`.

        Raises:
            NotFoundError: No such file.
            InvalidInputError: Not a photo; no face, several faces without ``face``, or a face that is too small; a
                photograph for a model of drawings, or the other way round (`celebctl.picture_kind`).
            PolicyError: The face is likely a minor's.

        Example:
            >>> from celebctl_models.mini.world import draw_portrait
            >>> Model.load("mini").analyse(draw_portrait(7, 256), name="alice").face.feature.shape
            (512,)
        """
        from celebctl_models.faces.photos import open_photo
        from celebctl_runtime.image_files import to_rgb

        if isinstance(photo, Subject):
            return replace(photo, name=name) if name else photo
        is_file = isinstance(photo, (str, Path))
        image = open_photo(photo) if is_file else to_rgb(photo)
        name = name or (Path(photo).stem if is_file else "")
        source = str(photo) if is_file else ""
        size = self.analyser.settings.min_face
        subject = analyse_photo(self.analyser, image, name, face=face, source=source, min_size=size)
        error = other_kind(self.card, image, subject.face, self.face_models, source or f"the photo of {name}")
        if error is None:
            return subject
        if not force:
            raise error
        return replace(subject, remark=f"{error.reason}: score {error.values['score']}, limit {error.values['limit']}")

    @overload
    def learn(self, photo: Photo, *, name: str | None = None, **options: Unpack[LearnOptions]) -> Identity:
        """Learn one person."""

    @overload
    def learn(
        self,
        photo: list[Photo] | list[Subject] | tuple[Photo, ...],
        *,
        names: Sequence[str] | None = None,
        **options: Unpack[LearnOptions],
    ) -> list[Identity]:
        """Learn several people together."""

    def learn(
        self,
        photo: Photo | list[Photo] | list[Subject] | tuple[Photo, ...],
        *,
        name: str | None = None,
        names: Sequence[str] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Identity | list[Identity]:
        """Learn a person from one photo, or several people together from one photo each.

        Args:
            photo: A file, an image or an analysed photo; a list of them for several people.
            name: The person's name in prompts; by default that of the file.
            names: The names for a list of photos.
            options: See `LearnOptions`.

        Returns:
            The identity, or a list of them in the order of the photos. They are not saved.

        Raises:
            UsageError: An invalid name or setting.
            InvalidInputError: A photo that cannot be used.
            PolicyError: A likely minor.
            IntegrityError: The checkpoint belongs to something else, or the model's mapper to other face models.

        Example:
            >>> from celebctl_models.mini.world import draw_portrait
            >>> model = Model.load("mini")
            >>> model.learn(draw_portrait(7, 256), name="alice", method="instant").provenance["init"]
            'fitted'
        """
        from celebctl.consent import consent_record
        from celebctl.learning.config import config_for
        from celebctl.learning.initialization import require_same_faces
        from celebctl_models.faces.packs import face_models_name

        several = isinstance(photo, (list, tuple))
        photos: Sequence[Photo] = photo if several else [photo]
        given_names = names if names is not None else [name] if name else None
        subjects = self._subjects(photos, given_names, options.get("force", False))
        method = options.get("method", "train")
        given = options.get("config")
        settings = given or config_for(
            options.get("preset", "clean"), steps=options.get("steps"), seed=options.get("seed"), method=method
        )
        if method == "instant" and options.get("resume"):
            raise UsageError("the instant method cannot be resumed", "leave one of them out", reason="instant_resume")
        consent = consent_record(options.get("consent"))
        prepared = self.prepared(release=settings.names == "release")
        require_same_faces(prepared, settings, face_models_name(self.face_models))
        learned = self._instant(subjects, settings) if method == "instant" else self._train(subjects, settings, options)
        for index, (one, subject) in enumerate(zip(learned, subjects, strict=True)):
            record = {"consent": consent, "face_models": face_models_name(self.face_models)}
            record |= {"forced": subject.remark} if subject.remark else {}
            learned[index] = replace(one, provenance={**one.provenance, **record})
        return learned if several else learned[0]

    def _instant(self, subjects: Sequence[Subject], settings: LearnConfig) -> list[Identity]:
        """The mapper's output, without torch."""
        from celebctl.learning.instant import instant_people

        return instant_people(self.prepared(release=settings.names == "release"), subjects, settings)

    def _train(self, subjects: Sequence[Subject], settings: LearnConfig, options: LearnOptions) -> list[Identity]:
        """Optimise the coefficients of all subjects together."""
        from celebctl.learning.device import choose_micro_batch
        from celebctl.learning.trainer import learn_people
        from celebctl.learning.training import TrainerOptions

        views, low_memory = settings.views * len(subjects), options.get("low_memory", False)
        size = choose_micro_batch(self.parts, views, low_memory=low_memory)
        trainer_options = TrainerOptions(size, options.get("checkpoint"), options.get("resume", False))
        model = self.trainable(release=settings.names == "release")
        progress = options.get("progress", ignore_progress)
        return learn_people(model, subjects, settings, self.analyser, trainer_options, progress)

    def _subjects(self, photos: Sequence[Photo], names: Sequence[str] | None, force: bool) -> list[Subject]:
        """The analysed photos with their names. Raises UsageError when names and photos do not match."""
        if names is not None and len(names) != len(photos):
            raise UsageError(f"{len(photos)} photos and {len(names)} names do not match", "give one name per photo")
        subjects = [self.analyse(one, name=names[i] if names else "", force=force) for i, one in enumerate(photos)]
        called = [subject.name for subject in subjects]
        for one in called:
            if not one or called.count(one) > 1:
                problem = f"two people are named {one}" if one else "a person has no name"
                raise UsageError(problem, "give every person a name of their own", reason="names_not_unique")
        if len(subjects) > 1:
            warn_about_similar(subjects, self.analyser.settings.similar)
        return subjects

    @cached_property
    def celebrities(self) -> Celebrities:
        """The names behind the basis and their embeddings."""
        from celebctl.basis.identity_vectors import celebrities_of

        return celebrities_of(self.tables, self.prepared().assets.names)

    def sample(self, name: str, seed: int) -> Identity:
        """A new identity of no real person. The same seed gives the same identity.

        Args:
            name: Its name in prompts.
            seed: 0 or more.

        Raises:
            InvalidInputError: Every draw is too near to a celebrity.

        Example:
            >>> Model.load("mini").sample("carol", seed=5).provenance["sample_seed"]
            '5'
        """
        from celebctl.basis.identity_vectors import sampled_identity
        from celebctl.learning.instant import identity_prior
        from celebctl.mapper_training.mapper_store import trained_mappers

        trained = trained_mappers(self.library.cache(), self.basis)  # of any recogniser: no face is read
        prior = identity_prior(trained[-1].path if trained else self.prepared().assets.mapper, self.basis)
        hashes = self.family, self.tables.table_hash
        return sampled_identity(name, seed, self.celebrities, self.basis, hashes, prior)[0]

    def nearest(self, identity: Identity, top: int = 5, *, known: Sequence[Identity] = ()) -> list[Neighbour]:
        """The celebrities and ``known`` identities most similar to an identity, as the text encoder reads them.

        Args:
            identity: Learned for this model.
            top: How many.
            known: Identities to compare with besides the celebrities.

        Raises:
            IntegrityError: An identity of another model.

        Example:
            >>> model = Model.load("mini")
            >>> len(model.nearest(model.sample("carol", seed=5), top=3))
            3
        """
        from celebctl.basis.identity_vectors import neighbours, require_model
        from celebctl.basis.text_features import text_features
        from celebctl_models.checkpoints.text_encoders import load_texts

        require_model(identity, self.tables.family, self.tables.table_hash)
        read = partial(text_features, load_texts(self.tables.path))
        return neighbours(identity, self.celebrities, known, self.basis, read)[:top]

    def export(
        self,
        path: str | Path,
        people: Sequence[Identity] = (),
        *,
        overwrite: bool = False,
        progress: ProgressCallback = ignore_progress,
        **options: Unpack[BundleOptions],
    ) -> Bundle:
        """Write the model and people as a bundle that runs without torch.

        Args:
            path: Folder of the bundle.
            people: Identities to include; more can be added later.
            overwrite: Replace a bundle at ``path``.
            progress: Receives the stage.
            options: See :class:`BundleOptions`.

        Raises:
            UsageError: ``path`` exists, or options that do not fit.
            NotFoundError: A missing file.
            InvalidInputError: A tiny autoencoder or LoRA of another kind of model, or a file that holds none.
            IntegrityError: People of another model, damaged files, or graphs that do not reproduce torch's output.
            SetupError: A package is missing, such as peft for LoRA files.
        """
        import torch

        from celebctl.basis.average import average_embeddings
        from celebctl_export import ExportOptions, export_bundle
        from celebctl_models.checkpoints.diffusion import load_parts
        from celebctl_models.checkpoints.lora import check_loras, fuse_loras
        from celebctl_models.checkpoints.tiny_autoencoders import check_tiny_autoencoder, load_tiny_autoencoder
        from celebctl_runtime.files import refuse_existing

        refuse_existing(Path(path), overwrite)
        dtype, tiny_vae = options.get("dtype", "fp32"), options.get("tiny_vae")
        tiny = None if tiny_vae is None else load_tiny_autoencoder(Path(tiny_vae))
        loras = options.get("loras", ())
        check_loras(loras)
        # in the dtype that is written: an XL model leaves no room for a second copy of itself
        parts = load_parts(self.source, dtype=torch.float16 if dtype == "fp16" else None, options=self._options)
        if tiny is not None:
            check_tiny_autoencoder(tiny, parts)
            parts = replace(parts, vae=tiny)
        if loras:
            parts = fuse_loras(parts, loras)
        settings = ExportOptions(options.get("spare_rows"), dtype, average_embeddings(parts, self.library))
        return export_bundle(parts, people, Path(path), settings, progress)

    def contact_sheet(self, people: Sequence[Identity], photos: Sequence[Image]) -> Image:
        """Each person's photo and six generated images, and pairs of people, as one image."""
        from celebctl.learning.contact_sheet import contact_sheet

        return contact_sheet(self.parts, people, photos)
