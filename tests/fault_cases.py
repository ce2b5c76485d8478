"""The 62 faults that celebctl is tested against: what happens, what must follow, and the tests that prove it."""

from __future__ import annotations

from dataclasses import dataclass

#: What a test has in place of hardware or programs that the machine of the tests lacks.
TENSORRT = "TensorRT and its GPU by a device of ours, the calls checked against the real bindings"
CUDA = "the GPU by ONNX Runtime's answers"


@dataclass(frozen=True)
class Case:
    """One fault. `tests` are "module::function" in tests/; `code` is the exit code, or what happens instead."""

    number: int
    fault: str
    expected: str
    code: str
    tests: tuple[str, ...]
    #: What stands for missing hardware, "" where everything is real.
    simulated: str = ""


def _case(number: int, fault: str, expected: str, code: str, tests: str, simulated: str = "") -> Case:
    return Case(number, fault, expected, code, tuple(f"test_{test}" for test in tests.split()), simulated)


HOSTILE = "image_files::test_other_files_are_refused_by_name_and_reason"

#: Heading -> cases.
CASES: dict[str, tuple[Case, ...]] = {
    "Photos": (
        _case(1, "a file of no bytes", "refused", "3", HOSTILE),
        _case(2, "a truncated JPEG", "refused", "3", HOSTILE),
        _case(3, "a PNG of 30,000 x 30,000 pixels", "refused before it is decoded", "3", HOSTILE),
        _case(
            4, "texts or a colour profile of a PNG that would fill the memory", "skipped with a warning", "0",
            "image_files::test_texts_that_would_fill_the_memory_are_skipped picture::test_a_recipe_bomb_is_rejected",
        ),
        _case(5, "a text called .jpg", "refused", "3", HOSTILE),
        _case(
            6, "EXIF orientation 1 to 8", "the same picture", "0",
            "image_files::test_every_exif_orientation_gives_the_same_picture",
        ),
        _case(7, "a CMYK JPEG", "converted", "0", "image_files::test_cmyk_jpeg_is_read"),
        _case(8, "a PNG of 16 bits", "converted", "0", "image_files::test_every_png_mode_becomes_rgb"),
        _case(
            9, "grey, palette, transparency", "converted, over white", "0",
            "image_files::test_every_png_mode_becomes_rgb image_files::test_transparency_is_composed_over_white"
            " faces::test_photos_of_every_mode_are_analysed",
        ),
        _case(
            10, "an animated GIF, PNG or WebP", "the first frame, with a note", "0",
            "image_files::test_the_first_frame_of_an_animation_is_read_with_a_warning",
        ),
        _case(
            11, "HEIC without its decoder", "the extra is named", "6",
            "image_files::test_a_heic_photo_without_its_decoder_hints_at_the_extra",
        ),
        _case(
            12, "SVG, PDF, FITS, EPS and other formats", "refused by a list of formats", "3",
            f"image_files::test_formats_that_are_not_on_the_list_are_refused {HOSTILE}",
        ),
        _case(
            13, "a wide colour profile", "followed; a broken one is ignored", "0",
            "image_files::test_colour_profiles_are_followed_and_broken_ones_ignored",
        ),
        _case(
            14, "a folder, a missing or unreadable file", "not found", "4",
            "image_files::test_unreadable_paths_are_errors"
            " image_files::test_a_missing_photo_suggests_a_file_for_a_sample",
        ),
        _case(15, "a web address", "refused; nothing is fetched", "2", "image_files::test_unreadable_paths_are_errors"),
    ),
    "Faces": (
        _case(
            16, "no face", "refused, with a picture of what was found", "3",
            "photo_quality::test_no_face_is_an_error_with_a_picture learn::test_a_photo_without_a_face_is_refused",
        ),
        _case(
            17, "several faces", "listed; one must be chosen", "3",
            "learn_command::test_two_faces_ask_which_one faces::test_no_face_and_several_faces_are_refused",
        ),
        _case(
            18, "a face of less than 64 pixels", "refused", "3",
            "faces::test_a_tiny_face_is_refused"
            " photo_quality::test_a_face_that_learning_would_refuse_is_refused_here",
        ),
        _case(
            19, "a face that fills the photo", "found with a border", "0",
            "faces::test_a_face_that_fills_the_photo_is_found_with_a_border",
        ),
        _case(
            20, "a turned, covered or blurred face", "graded, with numbers", "0",
            "photo_quality::test_the_direction_of_a_turned_head_is_named"
            " photo_quality::test_a_covered_half_is_detected photo_quality::test_the_more_blurred_the_less_sharp",
        ),
        _case(
            21, "a drawing, for models of photographs", "refused", "3",
            "picture_kind::test_a_drawing_is_refused_by_models_of_photographs",
        ),
        _case(
            22, "two photos of one person under two names", "a warning", "0",
            "learn_command::test_people_who_look_alike_are_pointed_out",
        ),
        _case(
            23, "a likely minor", "refused; nothing is learned", "7",
            "consent::test_likely_minors_are_refused_and_nothing_is_learned",
        ),
    ),
    "Names and prompts": (
        _case(
            24, "a name with ../, /, NUL or a line break", "refused; nothing is written", "2",
            "library::test_invalid_names_never_reach_the_disk learn_command::test_names_that_will_not_do_are_code_2",
        ),
        _case(
            25, "a device of Windows, a final dot, 300 characters", "refused", "2",
            "library::test_invalid_names_never_reach_the_disk identity::test_other_names_are_refused_with_a_hint",
        ),
        _case(
            26, "ann and anna in one prompt", "each where she is named", "0",
            "tokenizer::test_names_match_whole_words",
        ),
        _case(
            27, "letters that only look alike, other scripts", "one canonical form, or refused", "2",
            "identity::test_names_have_one_canonical_form identity::test_other_names_are_refused_with_a_hint",
        ),
        _case(
            28, "the end of text token, written out, in a prompt", "plain text", "0",
            "tokenizer::test_literal_special_tokens_are_plain_text",
        ),
        _case(
            29, "an unknown name in brackets", "not found, with a suggestion", "4",
            "gen_command::test_an_unknown_name_in_brackets_is_code_4_with_a_suggestion",
        ),
        _case(
            30, "a prompt that is too long for its windows", "the cut is reported, people are kept", "0",
            "tokenizer::test_people_are_kept_when_text_is_dropped gen_command::test_text_that_does_not_fit_is_reported",
        ),
        _case(
            31, "an empty prompt, only marks, open parentheses", "drawn as plain text", "0",
            "faults::test_odd_prompts_are_plain_text",
        ),
        _case(32, "a person twice in a prompt", "in both places", "0", "faults::test_a_person_twice_is_in_both_places"),
        _case(
            33, "a weight that is not a number, or 1e9", "refused", "2",
            "overrides::test_invalid_likeness_text_is_refused_with_a_hint"
            " people_commands::test_invalid_mixes_are_refused",
        ),
        _case(
            34, "100,000 lines of prompts; blank lines, CRLF, a byte order mark", "read", "0",
            "faults::test_many_lines_are_read jobs::test_the_three_formats_say_the_same",
        ),
    ),
    "Files": (
        _case(
            35, "a pickle with code in it", "never run", "3",
            "textual_inversion_refusals::test_a_malicious_pickle_is_never_run"
            " diffusion::test_pickled_weights_are_never_read",
        ),
        _case(
            36, "safetensors with a huge header, overlaps, repeated keys", "refused", "5",
            "textual_inversion_refusals::test_header_bombs_are_refused identity::test_duplicate_keys_are_refused",
        ),
        _case(
            37, "an embedding of another width", "refused; the width is named", "5",
            "import_export_commands::test_another_width_is_another_model",
        ),
        _case(
            38, "an embedding of NaN, infinity or zeros", "refused", "5",
            "textual_inversion_refusals::test_rows_that_are_not_finite_or_zero_are_refused"
            " identity::test_invalid_arrays_are_refused",
        ),
        _case(
            39, "a basis that is not the person's", "refused", "5",
            "basis::test_a_basis_survives_the_disk_and_a_damaged_one_is_not_believed"
            " learn::test_the_fitted_start_belongs_to_one_basis_and_survives_the_disk",
        ),
        _case(
            40, "a person of another checkpoint", "refused with the distance; a note when the table is the same", "5",
            "checkpoint_options::test_a_person_of_another_token_table_is_refused_with_the_distance"
            " import_export_commands::test_another_text_encoder_is_noted"
            " bundle::test_people_of_another_model_are_refused",
        ),
        _case(
            41, "an archive with paths upwards, links or a bomb; a bundle with links", "refused; nothing is unpacked",
            "5",
            "face_packs::test_a_wrong_archive_is_refused_and_nothing_changes"
            " untrusted_paths::test_a_link_in_a_bundle_is_refused"
            " untrusted_paths::test_a_manifest_names_plain_files_only",
        ),
        _case(
            42, "a file of a newer version", "refused: upgrade", "5",
            "bundle::test_a_newer_format_is_refused picture::test_damaged_and_newer_recipes_are_refused",
        ),
        _case(
            43, "an edited file of a bundle", "found by its hash", "5",
            "bundle::test_one_flipped_byte_anywhere_is_found_and_named"
            " bundle_verification::test_gen_ends_with_the_exit_code_of_damage",
        ),
    ),
    "Engines": (
        _case(
            44, "an engine of another TensorRT", "not loaded; ONNX Runtime draws, or with --device trt an error", "6",
            "tensorrt_backend::test_engines_of_another_gpu_or_version_are_named"
            " tensorrt_backend::test_other_versions_of_tensorrt_are_refused",
            TENSORRT,
        ),
        _case(
            45, "an engine of another GPU", "as 44", "6",
            "tensorrt_backend::test_auto_uses_onnx_runtime_when_engines_are_of_another_gpu", TENSORRT,
        ),
        _case(
            46, "an engine of another system", "it has another key and is not found", "6",
            "tensorrt_build::test_the_key_changes_with_all_that_an_engine_is_bound_to", TENSORRT,
        ),
        _case(
            47, "an engine that is not ours, or damaged", "not loaded", "6",
            "tensorrt_backend::test_engines_of_a_bundle_are_never_loaded"
            " tensorrt_backend::test_a_damaged_record_counts_as_none",
            TENSORRT,
        ),
        _case(
            48, "a driver that is too old", "both versions are named", "6",
            "tensorrt_backend::test_a_driver_that_is_too_old_is_reported_with_both_numbers", TENSORRT,
        ),
        _case(
            49, "a size outside every profile", "ONNX Runtime draws, said once", "0",
            "tensorrt_backend::test_inputs_that_fit_no_engine_are_an_error_or_use_the_fallback"
            " tensorrt_backend::test_auto_falls_back_with_one_warning_and_trt_raises",
            TENSORRT,
        ),
        _case(
            50, "both builds of ONNX Runtime installed", "reported with the commands to fix it", "6",
            "doctor::test_the_two_runtimes_and_the_three_environments"
            " project_layout::test_the_two_onnx_runtimes_never_meet",
        ),
        _case(
            51, "CUDA asked for, but ONNX Runtime would use the CPU", "an error", "6",
            "pipeline::test_a_silent_fall_back_to_the_cpu_is_an_error_when_cuda_was_asked_for"
            " gen_command::test_cuda_without_cuda_is_code_6",
            CUDA,
        ),
        _case(
            52, "out of memory", "large images are decoded one by one, then an error", "6",
            "ort_session::test_out_of_memory_has_a_reason ort_session::test_large_images_are_decoded_one_by_one"
            " ort_session::test_a_device_that_is_full_ends_with_the_environments_exit_code",
            CUDA,
        ),
    ),
    "While it runs": (
        _case(
            53, "Ctrl-C or SIGTERM", "learning continues with --resume to the same numbers; nothing is half-written",
            "130, 143",
            "learn::test_an_interrupted_run_resumes_to_the_very_same_numbers"
            " learn_command::test_ctrl_c_keeps_the_place_and_says_how_to_go_on"
            " termination::test_a_signal_ends_with_its_code_and_leaves_nothing",
        ),
        _case(
            54, "kill -9", "nothing is lost or half-written; what is left is removed after a day", "",
            "faults::test_nothing_is_lost_by_kill_9 bundle::test_a_kill_at_any_write_leaves_a_complete_bundle"
            " jobs::test_a_killed_run_loses_and_repeats_nothing"
            " files::test_what_a_killed_process_left_is_removed_after_a_day",
        ),
        _case(
            55, "a full disk, a quota, a read-only or vanished folder", "the old file stays, no half one", "6",
            "faults::test_a_disk_that_fills_up_keeps_the_old_file"
            " faults::test_a_limit_on_file_sizes_keeps_the_old_file faults::test_a_vanished_folder"
            " untrusted_files::test_every_failure_to_write_is_a_setup_error_that_names_the_file"
            " gen_command::test_a_full_disk_is_code_6_and_leaves_no_half_picture",
        ),
        _case(
            56, "two or three processes learn one name, or change one bundle", "one learns; bundles get all changes",
            "9",
            "library::test_a_name_held_elsewhere_is_busy learn_command::test_a_person_being_learned_elsewhere_is_busy"
            " faults::test_of_processes_that_save_one_name_one_succeeds"
            " faults::test_processes_that_change_one_bundle_lose_nothing",
        ),
        _case(
            57, "reading during a change", "the old state or the new", "0",
            "pipeline::test_readers_never_see_a_partial_change"
            " faults::test_processes_that_change_one_bundle_lose_nothing",
        ),
        _case(
            58, "an output file that exists", "kept without --force", "2",
            "gen_command::test_images_overwrite_only_with_force"
            " untrusted_files::test_of_several_writers_of_a_new_file_one_succeeds",
        ),
        _case(
            59, "a lock whose process was killed", "free at once", "0",
            "library::test_a_name_held_elsewhere_is_busy",
        ),
        _case(
            60, "a clock that jumps; SOURCE_DATE_EPOCH", "changes are seen; dates can be fixed", "0",
            "faults::test_a_clock_that_jumps_hides_no_change picture::test_the_date_can_be_fixed"
            " files::test_what_a_killed_process_left_is_removed_after_a_day",
        ),
        _case(
            61, "a reader that closes the pipe", "silence", "0",
            "cli::test_a_closed_pipe_is_no_error faults::test_a_pipe_closed_at_once_is_no_error",
        ),
        _case(
            62, "the same seed again, alone or in a batch", "the same bytes", "0",
            "pipeline::test_the_same_request_gives_the_same_pixels"
            " pipeline::test_image_k_of_a_batch_equals_the_single_image"
            " gen_command::test_picture_k_has_seed_k_and_equals_the_single_one",
        ),
    ),
}  # fmt: skip
