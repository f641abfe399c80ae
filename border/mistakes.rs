//! Known mistakes, each as the change to one source that makes it. The checker must find every one.

/// A mistake, and how to make it.
pub struct Mistake {
    /// Also the name of its world.
    pub name: &'static str,
    pub file: &'static str,
    /// (as it is, as it would be wrong); each is there exactly once.
    pub changes: &'static [(&'static str, &'static str)],
}

const QUEUE: &str = "capi/src/queue.rs";
const MAILBOX: &str = "engine/src/mailbox.rs";

const BATON: &str = "engine/src/baton.rs";
const LOG_WRITER: &str = "engine/src/node/log_writer.rs";

pub const MISTAKES: [Mistake; 28] = [
    Mistake {
        name: "written_aside_while_another_write_waits",
        file: LOG_WRITER,
        changes: &[("let alone = self.last == self.durable;", "let alone = true;")],
    },
    Mistake {
        name: "pen_laid_down_in_silence",
        file: BATON,
        changes: &[("            state.asleep = true;\n            state = self.0.changed.wait(state)", "            state = self.0.changed.wait(state)")],
    },
    Mistake {
        name: "pen_laid_down_before_it_is_told",
        file: LOG_WRITER,
        changes: &[
            ("            let heard = tell.send", "            pen.lay();\n            let heard = tell.send"),
            ("            // Not before: what the next one has written would be told first.\n            pen.lay();\n", ""),
        ],
    },
    Mistake {
        name: "log_thread_ends_before_the_job",
        file: LOG_WRITER,
        changes: &[("        // A job may still have it.\n        drop(pen.wait());", "        drop(pen.take());")],
    },
    Mistake {
        name: "pen_laid_down_after_a_failure",
        file: LOG_WRITER,
        changes: &[("            drop(pen);\n            let _ = tell.send(Input::DiskFailed(error));\n            false", "            pen.lay();\n            let _ = tell.send(Input::DiskFailed(error));\n            false")],
    },
    Mistake {
        name: "lost_pen_is_waited_for",
        file: BATON,
        changes: &[("        if !self.laid {\n            self.shared.put(Place::Gone);\n        }", "        if !self.laid {\n            self.shared.lock().place = Place::Gone;\n        }")],
    },
    Mistake {
        name: "signal_before_push",
        file: QUEUE,
        changes: &[(
            "        state.records.extend(records);\n        if was_empty && !state.records.is_empty() {\n            self.signal(state);\n        }\n",
            "        if was_empty {\n            self.signal(state);\n            state = self.lock();\n        }\n        state.records.extend(records);\n",
        )],
    },
    Mistake {
        name: "signal_with_every_push",
        file: QUEUE,
        changes: &[("if was_empty && !state.records.is_empty() {", "if !state.records.is_empty() {")],
    },
    Mistake {
        name: "descriptor_set_after_the_lock",
        file: QUEUE,
        changes: &[(
            "            descriptor.set();\n            state.signalled = true;\n        }\n        let waiting = state.waiting > 0;\n        drop(state);\n",
            "            state.signalled = true;\n        }\n        let waiting = state.waiting > 0;\n        drop(state);\n        if let Wake::Descriptor(descriptor) = &self.wake {\n            descriptor.set();\n        }\n",
        )],
    },
    Mistake {
        name: "descriptor_reset_after_the_lock",
        file: QUEUE,
        changes: &[
            ("                descriptor.reset();\n", ""),
            (
                "            drop(state);\n        } else {\n            self.signal(state);\n        }\n        drop(before);\n",
                "            drop(state);\n            if let Wake::Descriptor(descriptor) = &self.wake {\n                descriptor.reset();\n            }\n        } else {\n            self.signal(state);\n        }\n        drop(before);\n",
            ),
        ],
    },
    Mistake {
        name: "drain_leaves_without_a_signal",
        file: QUEUE,
        changes: &[("        if state.records.is_empty() {\n            drop(state);", "        if true {\n            drop(state);")],
    },
    Mistake {
        name: "one_waiter_told",
        file: QUEUE,
        changes: &[("            self.filled.notify_all();\n        }\n        if let", "            self.filled.notify_one();\n        }\n        if let")],
    },
    Mistake {
        name: "waiter_not_counted",
        file: QUEUE,
        changes: &[("            state.waiting = state.waiting.saturating_add(1);\n", "")],
    },
    Mistake {
        name: "sleeper_not_noted",
        file: MAILBOX,
        changes: &[("            state.asleep = true;\n", "")],
    },
    Mistake {
        name: "last_sender_leaves_in_silence",
        file: MAILBOX,
        changes: &[("let last = state.senders == 0 && std::mem::take(&mut state.asleep);", "let last = false;")],
    },
    Mistake {
        name: "mail_for_nobody_is_kept",
        file: MAILBOX,
        changes: &[("        if !state.received {\n            return Err(Gone(thing));\n        }\n", "")],
    },
    Mistake {
        name: "free_tells_no_waiter",
        file: QUEUE,
        changes: &[("        self.filled.notify_all();\n        drop(dropped);", "        drop(dropped);")],
    },
    Mistake {
        name: "wait_lets_go_between_look_and_sleep",
        file: QUEUE,
        changes: &[("            state = match left {", "            drop(state);\n            state = self.lock();\n            state = match left {")],
    },
    Mistake {
        name: "closed_while_the_machine_lives",
        file: "capi/src/sink.rs",
        changes: &[("Fate::Open(None, !machine)", "Fate::Open(None, true)")],
    },
    Mistake {
        name: "over_before_closed_is_there",
        file: "capi/src/sink.rs",
        changes: &[("*fate = Fate::Telling;", "*fate = Fate::Over;")],
    },
    Mistake {
        name: "answered_and_still_open",
        file: "capi/src/open_requests.rs",
        changes: &[("            open.remove(&id);\n", "")],
    },
    Mistake {
        name: "answered_in_two_steps",
        file: "capi/src/open_requests.rs",
        changes: &[
            ("        let mut open = self.lock();\n", ""),
            ("if open.get(&id).is_some_and(", "if self.lock().get(&id).is_some_and("),
            ("            open.remove(&id);\n", "            self.lock().remove(&id);\n"),
        ],
    },
    Mistake {
        name: "end_before_the_machine_is_dropped",
        file: "engine/src/machine_thread.rs",
        changes: &[
            ("                run(machine, &messages, &stop_seen);\n", ""),
            (
                "                let _ = catch_unwind(AssertUnwindSafe(on_end));\n",
                "                let _ = catch_unwind(AssertUnwindSafe(on_end));\n                run(machine, &messages, &stop_seen);\n",
            ),
        ],
    },
    Mistake {
        name: "wait_holds_the_lock_of_the_thread",
        file: "engine/src/machine_thread.rs",
        changes: &[
            (
                "        if self.own == std::thread::current().id() {\n",
                "        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);\n        if self.own == std::thread::current().id() {\n",
            ),
            (
                "        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();\n        if let Some(thread) = thread {",
                "        if let Some(thread) = thread.take() {",
            ),
        ],
    },
    Mistake {
        name: "closed_told_twice",
        file: "capi/src/sink.rs",
        changes: &[("        *fate = Fate::Telling;\n", "")],
    },
    Mistake {
        name: "machine_answers_twice",
        file: "engine/src/machine_thread.rs",
        changes: &[(
            "            let _ = node.answer(MachineAnswer::Applied { id: batch.id, outcomes: results.into_answer(&batch) });\n",
            "            let outcomes = results.into_answer(&batch);\n            let _ = node.answer(MachineAnswer::Applied { id: batch.id, outcomes: outcomes.clone() });\n            let _ = node.answer(MachineAnswer::Applied { id: batch.id, outcomes });\n",
        )],
    },
    Mistake {
        name: "last_look_with_the_door_open",
        file: "engine/src/node/inbox.rs",
        changes: &[
            ("    door.close();\n    inputs.close();\n", ""),
            ("while let Some(input) = inputs.recv().await {", "while let Ok(input) = inputs.try_recv() {"),
        ],
    },
    Mistake {
        name: "last_look_without_waiting",
        file: "engine/src/node/inbox.rs",
        changes: &[("while let Some(input) = inputs.recv().await {", "while let Ok(input) = inputs.try_recv() {")],
    },
];
