"""Cases that need what a guest that isolates does not have, on purpose; all others are played in one, too."""

from __future__ import annotations

from typing import Final

__all__ = ["BEYOND", "BEYOND_MACHINES", "ISOLATED", "MACHINE", "NAMESPACES"]

#: The place: a guest in namespaces of its own.
NAMESPACES: Final = "namespaces"

#: The place: a virtual machine.
MACHINE: Final = "machine"

#: Places in which processes have other numbers than here.
ISOLATED: Final = (NAMESPACES, MACHINE)

#: What the case does, and the cases.
_REASONS: Final = {
    "it connects to a server of this machine": """
        a_cancelled_receive_takes_nothing a_closed_connection_is_closed a_forgotten_connection_warns_and_is_closed
        a_host_may_be_bytes a_name_is_resolved a_reset_of_the_peer_is_an_error
        a_slow_peer_gets_all_that_was_sent_before_a_close after_an_end_of_file_nothing_can_be_sent
        an_end_of_file_leaves_the_other_direction_open an_end_of_file_of_the_peer_leaves_this_direction_open
        sending_after_a_reset_is_an_error sizes_of_a_receive_are_checked_alike
        what_was_sent_arrives_though_the_program_ends what_was_sent_before_a_close_arrives
    """,
    "it has commands or files of another user": """
        a_command_has_the_ids_and_groups_of_its_user a_command_works_in_its_users_own_directory
        a_directory_that_only_root_may_enter_is_refused_to_another_user a_path_has_its_owner_and_group
        another_user_can_open_its_own_streams another_user_can_open_its_streams_by_other_names
        another_user_can_open_its_terminal
    """,
    "it looks at this user's home and files": "a_home_is_expanded errors_of_files_say_what_has_failed",
    "it starts this program's Python": """
        arguments_and_variables_need_not_be_text null_is_null thousands_of_lines_of_both_keep_their_order
        variables_come_as_they_were_given
    """,
    "it looks from here for processes of the guest, by the numbers that they have there": """
        a_block_that_is_left_kills_its_command a_captured_output_that_is_held_is_waited_for
        a_cancelled_command_is_dead_when_the_call_returns
        a_cancelled_command_that_handles_sigterm_may_do_its_last_work
        a_child_is_killed_with_a_cancelled_command a_daemon_is_killed_with_a_cancelled_command
        a_job_of_an_interactive_shell_is_killed_with_it a_server_in_a_session_of_its_own_lives_on
        a_server_in_the_background_lives_on_with_output_that_is_not_captured
        a_server_in_the_background_lives_on_with_output_to_null a_server_under_nohup_lives_on
        a_session_of_its_own_is_killed_with_a_cancelled_command a_stopped_command_is_killed_as_well
        the_lock_of_a_large_child_is_free_when_the_call_returns
        what_is_left_goes_on_writing_after_the_block what_timeout_has_started_is_killed_with_a_cancelled_command
        with_closed_outputs_a_cancelled_command_ends
    """,
}

#: The reason for each of them.
BEYOND: Final = {name: reason for reason, names in _REASONS.items() for name in names.split()}

#: The same for a virtual machine, beside those above.
_REASONS_OF_MACHINES: Final = {
    "it asks for the address of a host, and there is nobody to ask": "a_host_that_is_not_known_is_a_gaierror",
    "it looks at the numbers of a shared file, which are others there": "a_stat_has_all_fields",
    "it has a pipe with a name in a share, which is not the same one for two programs": """
        a_fifo_cannot_be_sought a_stream_that_another_process_holds_goes_on_after_the_exit
    """,
    "it has a program of a share open here, of which the kernel there knows nothing": """
        a_program_that_stays_open_for_writing_is_busy
    """,
}

BEYOND_MACHINES: Final = BEYOND | {
    name: reason for reason, names in _REASONS_OF_MACHINES.items() for name in names.split()
}
