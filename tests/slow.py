"The slow tests, by file."
# Slow tests: they train several runs, start processes or notebooks, or need a browser. `-m "not slow"` leaves them out.
# "*" stands for all tests of a file, a name for that test with all of its parameters, the name of a fixture for the
# tests that use it. test_hygiene.py checks that each exists; `pytest --durations=40` shows which tests belong here
# (more than about two seconds) and which no longer do.
SLOW = {
    "test_cli.py": """
        test_a_source_of_ones_own test_export_and_pretrain test_names_of_every_kind_go_through_adapt
        test_output_that_cannot_be_written test_the_command_is_installed test_the_module_is_the_command
        test_the_same_names_with_other_pictures_are_another_run test_json_is_json
        test_a_slip_costs_no_picture_and_no_model test_adapting_without_a_source_then_going_on""",
    "test_failure_modes.py": "*",
    "test_hostile_input.py": """
        test_labels_or_a_sentence test_features_that_are_no_numbers test_any_configuration_is_one_or_refused""",
    "test_hygiene.py": """
        test_exported_code_is_in_step_with_the_notebooks test_notebooks_are_clean
        test_a_wing_loads_only_what_it_uses""",
    "test_requirements.py": """
        test_the_base_imports_without_the_extras test_the_base_evaluates_and_searches_without_the_extras""",
    "deployment/test_onnx_export.py": """
        test_onnx_gives_the_vectors_of_torch test_an_export_that_differs_is_not_kept
        test_an_exported_file_embeds_pictures_as_the_model_does test_weights_become_integers_and_vectors_stay_near
        test_a_foreign_file_is_refused test_the_commands_export_and_measure_it
        test_a_file_that_takes_normalised_floats""",
    "deployment/test_trust.py": "*",
    "experiments/test_cost.py": """
        test_a_step_waits_for_nothing test_measuring_visits_every_row_and_part ready counted""",
    "experiments/test_report_page.py": "*",
    "experiments/test_starts.py": "*",
    "experiments/test_paper_presets.py": "test_two_steps_of_the_real_network_on_pictures_of_the_real_size",
    "experiments/test_runs.py": """
        test_killed_and_continued_is_bit_identical test_two_processes_want_the_same_run test_threads_are_given_back
        test_other_data_of_the_same_name_is_another_run test_initial_weights_from_a_file
        test_a_run_that_is_trained_anew_is_whole_at_every_moment
        test_the_same_names_with_other_pictures_are_other_runs
        test_a_shipped_pretraining_gives_the_run_that_training_gives test_waiting_for_another_process_is_said
        test_changed_code_of_a_method_is_told_and_again_replaces_the_run
        test_rows_of_a_run_rank_the_same_people_from_the_first_to_the_final_model
        test_without_rows_the_weights_are_the_same_bits""",
    "experiments/test_tables.py": """
        test_a_plugin_is_a_row_of_the_tables test_collect_keeps_rows_directions_and_seeds_apart""",
    "experiments/test_workers.py": "*",
    "deployment/test_gallery.py": "test_many_hits_are_found_too",
    "deployment/test_gallery_search.py": "test_a_small_gallery_is_searched_without_large_libraries",
    "deployment/test_browse.py": "test_a_real_browser_clicks_and_types",
    "deployment/test_gallery_commands.py": "test_a_load_of_writers_and_searchers_loses_nothing",
    "deployment/test_gallery_homes.py": "test_without_its_packages_a_database_is_one_sentence",
    "deployment/test_postgres_gallery.py": """
        test_writers_at_once_lose_nothing test_a_killed_writer_leaves_nothing_half_written
        test_the_index_finds_what_it_promises_also_under_filters
        test_a_server_that_stops_at_once_loses_only_what_was_not_stored""",
    "deployment/test_bad_days.py": """
        test_a_server_that_stops_while_a_command_indexes test_answers_and_tasks_on_a_full_disk
        test_a_database_on_a_full_disk_stores_nothing_of_the_batch test_a_hundred_thousand_tracks_of_one_picture""",
    "deployment/test_loaded_modules.py": "test_imports_load_little_beside_torch",
    "experiments/test_curves.py": "test_noise_level_is_the_ratio_that_random_directions_give",
    "test_site.py": "*",
    "methods/test_cgc.py": """
        test_resumes_to_the_same_bits test_going_on_inside_a_round_restores_the_memory
        test_unsupervised_runs_start_from_weights_that_no_person_has_touched""",
    "methods/test_spcl.py": "test_spcl_resumes_to_the_same_bits",
    "methods/test_cluster_contrast.py": "test_it_is_cgc_without_its_additions test_resumes_to_the_same_bits",
    "methods/test_example_neighbour_votes.py": "test_a_copy_of_the_notebook_is_a_method_with_a_row",
    "methods/test_inclr.py": "test_resumes_to_the_same_bits test_a_finished_run_loads_with_its_kappa",
    "methods/test_mmt.py": "test_resumes_to_the_same_bits test_the_twin_is_pretrained_from_another_seed",
    "methods/test_mspl.py": """
        test_going_on_is_bit_identical test_the_encoder_stands_still_and_then_moves
        test_old_momentum_does_not_move_a_frozen_encoder""",
    "methods/test_p2lr.py": "test_resumes_to_the_same_bits test_using_all_images_is_mutual_mean_teaching",
    "methods/test_varied_light.py": """
        test_only_training_images_change test_without_strength_it_is_the_baseline test_resumes_to_the_same_bits
        test_it_stands_before_another_method test_training_uses_the_measured_strength""",
    "training/test_distributed.py": "test_several_processes_give_the_losses_of_one",
    "training/test_loop.py": """
        test_going_on_from_any_epoch_is_bit_identical test_two_seeds_differ_and_one_seed_does_not""",
}
