//! The border under a model checker: every test runs the product's own sources (see `build.rs`) on the locks, condition variables,
//! threads and channels of [shuttle](https://docs.rs/shuttle), which tries schedules at random, by priorities (PCT), or all of
//! them where they are few.
//!
//! Lives here: what may happen at the border at the same time (`scenarios`), and the mistakes that must be found (`mistakes.rs`).
//! May not live here: code of the product.
#![cfg(test)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod channel;
mod explore;
mod system;

include!(concat!(env!("OUT_DIR"), "/worlds.rs"));

use explore::{all, finds, sample};

/// A check that every outcome was among what the schedules led to: a race that nobody can lose is none.
fn happened(outcomes: &[&str]) {
    if std::env::var_os("BORDER_REPLAY").is_some() {
        return;
    }
    let seen = right::node::OUTCOMES.lock().unwrap();
    for outcome in outcomes {
        assert!(seen.contains(outcome), "no schedule led to {outcome:?}, only to {seen:?}");
    }
}

#[test]
fn a_request_completes_exactly_once_whenever_the_node_closes() {
    sample(right::node::every_accepted_request_completes_once, 10_000);
    happened(&["done", "closed", "refused"]);
}

#[test]
fn a_deadline_or_its_completion_reaches_the_caller_never_both() {
    sample(right::node::a_deadline_races_its_completion, 10_000);
    happened(&["done", "timeout"]);
}

#[test]
fn nothing_accepted_is_overlooked_when_the_inbox_ends() {
    all(right::node::acceptance_races_the_last_look, 100_000);
    sample(right::node::acceptance_races_the_last_look, 5000);
}

#[test]
fn the_callback_wakes_whoever_sleeps_until_it_and_no_more_often_than_needed() {
    sample(right::queueing::drains_only_when_called_back, 10_000);
}

#[test]
fn a_blocking_wait_is_woken_whenever_something_is_there() {
    sample(right::queueing::drains_only_after_a_wait, 10_000);
    sample(right::queueing::all_who_wait_are_woken, 5000);
}

#[test]
fn the_descriptor_is_readable_exactly_while_something_is_there() {
    sample(right::queueing::drains_only_what_the_descriptor_says, 10_000);
}

#[test]
fn a_freed_queue_lets_its_waiters_go_and_is_destroyed_once_after_its_last_use() {
    sample(right::queueing::free_races_push_and_wait, 10_000);
}

#[test]
fn of_two_answers_to_a_request_one_is_taken() {
    all(right::answering::two_answers_race, 100_000);
}

#[test]
fn a_machine_is_destroyed_once_after_its_last_call_and_before_closed() {
    sample(right::machines::the_node_ends_while_the_machine_works, 5000);
}

#[test]
fn a_node_with_a_machine_of_its_own_ends_in_order() {
    sample(right::node::a_machine_of_its_own_ends_before_closed, 10_000);
}

#[test]
fn closed_is_there_when_its_waiter_goes_on() {
    all(right::ending::closed_is_in_the_queue_when_a_wait_for_it_ends, 100_000);
    sample(right::ending::both_ends_race, 10_000);
}

#[test]
fn what_is_sent_to_a_thread_arrives_or_comes_back() {
    sample(right::mailing::everything_sent_arrives_and_then_the_end, 10_000);
    sample(right::mailing::the_receiver_leaves_while_things_are_sent, 10_000);
}

#[test]
fn the_log_is_written_in_order_by_whoever_has_the_pen() {
    sample(right::writing::writes_keep_their_order_whoever_makes_them, 10_000);
    sample(right::writing::the_first_failure_is_the_last_write, 10_000);
}

#[test]
fn a_machines_own_thread_never_waits_for_its_end() {
    sample(right::machines::the_machine_waits_for_itself, 5000);
}

/// The net is proven: with the mistake in, the checker fails within its bound.
macro_rules! found {
    ($($mistake:ident: $scenario:ident::$test:ident;)*) => {
        mod found {
            $(#[test]
            fn $mistake() {
                assert!(super::finds(super::$mistake::$scenario::$test, 10_000), "{} was not found", stringify!($mistake));
            })*
        }

        #[test]
        fn every_mistake_of_the_list_is_looked_for() {
            let looked_for = [$(stringify!($mistake)),*];
            for mistake in &mistakes::MISTAKES {
                assert!(looked_for.contains(&mistake.name), "nobody looks for {}", mistake.name);
                let changes = mistake.changes.iter().all(|(right, wrong)| right != wrong);
                assert!(changes, "{} changes nothing in {}", mistake.name, mistake.file);
            }
        }
    };
}

#[path = "../mistakes.rs"]
mod mistakes;

found! {
    signal_before_push: queueing::drains_only_when_called_back;
    signal_with_every_push: queueing::drains_only_when_called_back;
    descriptor_set_after_the_lock: queueing::drains_only_what_the_descriptor_says;
    descriptor_reset_after_the_lock: queueing::drains_only_what_the_descriptor_says;
    drain_leaves_without_a_signal: queueing::drains_only_when_called_back;
    one_waiter_told: queueing::all_who_wait_are_woken;
    free_tells_no_waiter: queueing::free_races_push_and_wait;
    wait_lets_go_between_look_and_sleep: queueing::drains_only_after_a_wait;
    waiter_not_counted: queueing::drains_only_after_a_wait;
    sleeper_not_noted: mailing::everything_sent_arrives_and_then_the_end;
    last_sender_leaves_in_silence: mailing::everything_sent_arrives_and_then_the_end;
    mail_for_nobody_is_kept: mailing::the_receiver_leaves_while_things_are_sent;
    written_aside_while_another_write_waits: writing::writes_keep_their_order_whoever_makes_them;
    pen_laid_down_in_silence: writing::writes_keep_their_order_whoever_makes_them;
    pen_laid_down_before_it_is_told: writing::writes_keep_their_order_whoever_makes_them;
    log_thread_ends_before_the_job: writing::writes_keep_their_order_whoever_makes_them;
    pen_laid_down_after_a_failure: writing::the_first_failure_is_the_last_write;
    lost_pen_is_waited_for: writing::the_first_failure_is_the_last_write;
    closed_while_the_machine_lives: machines::the_node_ends_while_the_machine_works;
    over_before_closed_is_there: ending::closed_is_in_the_queue_when_a_wait_for_it_ends;
    answered_and_still_open: answering::two_answers_race;
    answered_in_two_steps: answering::two_answers_race;
    end_before_the_machine_is_dropped: machines::the_node_ends_while_the_machine_works;
    wait_holds_the_lock_of_the_thread: machines::the_machine_waits_for_itself;
    closed_told_twice: ending::both_ends_race;
    machine_answers_twice: machines::the_node_ends_while_the_machine_works;
    last_look_with_the_door_open: node::every_accepted_request_completes_once;
    last_look_without_waiting: node::acceptance_races_the_last_look;
}
