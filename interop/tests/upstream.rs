use raftify as _;
#[test]
fn x() {}
