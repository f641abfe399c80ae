use std::sync::mpsc;

use super::*;

/// What the node was told.
#[derive(Debug, PartialEq)]
enum Said {
    Applied(u64, Vec<(u64, Outcome)>),
    Chunk(Vec<u8>),
    SnapshotDone(u64, Result<(), String>),
    Restored(u64),
    Failed(u64, u64, ErrorCode),
    Dropped,
}

struct FakeNode {
    told: mpsc::Sender<Said>,
    state: Vec<u8>,
    unreadable_from: Option<u64>,
    disk_full: bool,
}

impl Answers for FakeNode {
    fn answer(&self, answer: MachineAnswer) -> Result<()> {
        let said = match answer {
            MachineAnswer::Applied { id, outcomes } | MachineAnswer::AppliedAndTold { id, outcomes } => {
                Said::Applied(id, outcomes)
            }
            MachineAnswer::Restored { id } => Said::Restored(id),
            MachineAnswer::Failed { id, index, error } => Said::Failed(id, index, error.code),
            MachineAnswer::Snapshot { id, result } => Said::SnapshotDone(id, result),
        };
        self.told.send(said).unwrap();
        Ok(())
    }

    fn snapshot_chunk(&self, _: u64, data: &[u8]) -> Result<()> {
        if self.disk_full {
            return Err(Error::not_done(ErrorCode::DiskFull, "full"));
        }
        self.told.send(Said::Chunk(data.to_vec())).unwrap();
        Ok(())
    }

    fn snapshot_done(&self, id: u64, result: Result<(), String>) -> Result<()> {
        self.told.send(Said::SnapshotDone(id, result)).unwrap();
        Ok(())
    }

    fn restore_read(&self, _: u64, offset: u64, out: &mut [u8]) -> Result<usize> {
        if self.unreadable_from.is_some_and(|from| offset >= from) {
            return Err(Error::not_done(ErrorCode::CorruptData, "bad chunk"));
        }
        let left = self.state.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let n = left.len().min(out.len());
        out[..n].copy_from_slice(&left[..n]);
        Ok(n)
    }
}

/// Keeps what was applied; does what the command says.
struct Obedient {
    state: Vec<u8>,
    told: mpsc::Sender<Said>,
}

impl StateMachine for Obedient {
    fn apply(&mut self, batch: &ApplyBatch, results: &mut Results) -> Result<(), String> {
        for (i, (_, command)) in batch.commands().enumerate() {
            match command {
                b"panic" => panic!("as told"),
                b"fail" => return Err("as told".into()),
                b"refuse" => results.set(i, Err("refused".into())).unwrap(),
                b"silent" => {}
                command => {
                    self.state.extend_from_slice(command);
                    results.set(i, Ok(command.to_vec())).unwrap();
                }
            }
        }
        assert_eq!(results.set(batch.entries.len(), Ok(vec![])).unwrap_err().code, ErrorCode::InvalidArgument);
        Ok(())
    }

    fn snapshot(&mut self, out: &mut dyn SnapshotOut) -> Result<(), String> {
        for byte in &self.state {
            // A machine that does not look at the error must not end in half a snapshot.
            let _ = out.write(&[*byte]);
        }
        Ok(())
    }

    fn restore(&mut self, input: &mut dyn SnapshotIn) -> Result<(), String> {
        self.state.clear();
        let mut piece = [0; 1000];
        while let Ok(n) = input.read(&mut piece) {
            if n == 0 {
                break;
            }
            self.state.extend_from_slice(&piece[..n]);
        }
        Ok(())
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        let _ = self.told.send(Said::Dropped);
    }
}

fn batch(id: u64, commands: &[&str]) -> MachineRequest {
    let commands: Vec<&[u8]> = commands.iter().map(|command| command.as_bytes()).collect();
    let mut batch = ApplyBatch::of(11, 1, &commands);
    batch.id = id;
    batch.entries.iter_mut().step_by(2).for_each(|entry| entry.wanted = true);
    MachineRequest::Apply(batch)
}

fn told_after(node: impl FnOnce(&mut FakeNode), requests: Vec<MachineRequest>) -> Vec<Said> {
    let (told, heard) = mpsc::channel();
    let machine = Box::new(Obedient { state: Vec::new(), told: told.clone() });
    let (ended, end) = mpsc::channel();
    let thread = MachineThread::spawn(machine, move || ended.send(()).unwrap()).unwrap();
    let mut fake = FakeNode { told, state: Vec::new(), unreadable_from: None, disk_full: false };
    node(&mut fake);
    // Requests may come before the node is attached: they wait.
    let answers = requests.len();
    for request in requests {
        thread.request(request);
    }
    thread.attach(fake);
    let mut all = Vec::new();
    let mut answered = 0;
    while answered < answers {
        let said = heard.recv().unwrap();
        answered += usize::from(!matches!(said, Said::Chunk(_) | Said::Dropped));
        let over = matches!(said, Said::Failed(..));
        all.push(said);
        if over {
            break;
        }
    }
    thread.stop();
    assert!(thread.wait(Duration::from_secs(60)));
    end.try_recv().unwrap();
    all.extend(heard.try_iter());
    assert_eq!(all.iter().filter(|said| **said == Said::Dropped).count(), 1, "the machine is dropped once");
    all.retain(|said| *said != Said::Dropped);
    all
}

#[test]
fn answers_hold_failures_and_what_somebody_waits_for() {
    let all = told_after(|_| {}, vec![batch(1, &["a", "b", "silent", "refuse", "silent", "silent"]), batch(2, &[])]);
    assert_eq!(
        all,
        [
            Said::Applied(
                1,
                vec![(11, Ok(b"a".to_vec())), (13, Ok(vec![])), (14, Err("refused".into())), (15, Ok(vec![]))]
            ),
            Said::Applied(2, vec![]),
        ]
    );
}

#[test]
fn a_machine_that_fails_or_panics_stops_the_node_at_the_entry_it_reached_and_is_not_called_again() {
    for (commands, at) in [(["a", "fail"], 12), (["panic", "b"], 11), (["a", "panic"], 12)] {
        let all = told_after(|_| {}, vec![batch(1, &commands), batch(2, &["c"])]);
        assert_eq!(all, [Said::Failed(1, at, ErrorCode::MachineFailed)], "{commands:?}");
    }
}

#[test]
fn a_snapshot_goes_out_in_pieces_and_a_lost_piece_loses_it() {
    let snapshot = || MachineRequest::Snapshot { id: 2, index: 12, term: 1 };
    let all = told_after(|_| {}, vec![batch(1, &["ab", "cd"]), snapshot()]);
    assert_eq!(all[1..], [Said::Chunk(b"abcd".to_vec()), Said::SnapshotDone(2, Ok(()))]);
    let all = told_after(|node| node.disk_full = true, vec![batch(1, &["ab", "cd"]), snapshot()]);
    assert_eq!(all[1..], [Said::SnapshotDone(2, Err("DiskFull: full".into()))]);
}

#[test]
fn a_state_larger_than_a_piece_is_restored_whole_and_an_unreadable_one_stops_the_node() {
    let state: Vec<u8> = (0..PIECE * 2 + 77).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let restore = || MachineRequest::Restore { id: 1, index: 9, term: 1, path: "x".into(), size: 0 };
    let snapshot = MachineRequest::Snapshot { id: 2, index: 9, term: 1 };
    let all = told_after(|node| node.state = state.clone(), vec![restore(), snapshot]);
    let mut written = Vec::new();
    for said in &all {
        if let Said::Chunk(data) = said {
            written.extend_from_slice(data);
        }
    }
    assert_eq!((all.first(), written == state), (Some(&Said::Restored(1)), true));
    let broken = |node: &mut FakeNode| {
        node.state = state.clone();
        node.unreadable_from = Some(PIECE as u64);
    };
    assert_eq!(told_after(broken, vec![restore()]), [Said::Failed(1, 9, ErrorCode::CorruptData)]);
}

#[test]
fn a_stop_before_the_node_is_attached_drops_the_machine() {
    let (told, heard) = mpsc::channel();
    let thread = MachineThread::spawn(Box::new(Obedient { state: Vec::new(), told }), || {}).unwrap();
    thread.request(batch(1, &["a"]));
    drop(thread);
    assert_eq!(heard.recv().unwrap(), Said::Dropped);
}
