//! Which segments make up the log, and in which order: found from the newest one backwards.
//!
//! ```text
//!   free      live: oldest ... newest            free: the tail that was written again at open
//!   [ 3 ]     [ 5 ] <- [ 6 ] <- [ 8 ]            [ 7 ]
//!                 previous   previous
//! ```
//! Generations rise; a segment says which one stands before it, and each frame which one is the oldest that is needed.
//! Nothing is said by names, sizes or times of files.

use crate::error::Result;
use crate::log::files::corrupt;

use super::frame::{Claim, FrameHeader};
use super::segment_file::SegmentFile;
use super::walk::{fault, Walk};

/// One live segment.
#[derive(Debug)]
pub(crate) struct Link {
    pub file: SegmentFile,
    /// Header of its first frame.
    pub first: FrameHeader,
}

/// The end of the whole frames of a segment.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub last: FrameHeader,
    pub crc: u32,
    /// Behind the last whole frame.
    pub offset: u64,
    /// Why the next one is none.
    pub why: String,
}

#[derive(Debug)]
pub(crate) struct Chain {
    /// Oldest first; never empty.
    pub links: Vec<Link>,
    /// All other segments.
    pub free: Vec<SegmentFile>,
}

/// Walks the frames of one segment, as long as each continues the one before; shows all of them to `visit`.
pub(crate) fn frames(
    file: &SegmentFile,
    mut visit: impl FnMut(&super::frame::Frame<'_>, u64) -> Result<()>,
) -> Result<Result<End, String>> {
    let mut walk = Walk::new(file);
    let mut end: Option<End> = None;
    loop {
        let offset = end.as_ref().map_or(0, |end| end.offset);
        let why = match walk.frame(offset)? {
            Err(why) => why,
            Ok(frame) => {
                let continues = match &end {
                    None => frame.header.first_of_segment,
                    Some(end) => {
                        !frame.header.first_of_segment
                            && frame.header.generation == end.last.generation
                            && frame.header.directory == end.last.directory
                            && frame.header.previous == end.last.previous
                            && Some(frame.header.number) == end.last.number.checked_add(1)
                            && frame.header.before == end.crc
                    }
                };
                if continues {
                    visit(&frame, offset)?;
                    let len = (super::frame::HEADER as u64).saturating_add(frame.body.len() as u64);
                    end = Some(End {
                        last: frame.header,
                        crc: frame.crc,
                        offset: offset.saturating_add(len),
                        why: String::new(),
                    });
                    continue;
                }
                "a frame that does not continue the one before it".into()
            }
        };
        return Ok(end.map(|end| End { why: why.clone(), ..end }).ok_or(why));
    }
}

/// The first frame of a segment, if it is whole.
fn head(file: &SegmentFile) -> Result<Option<FrameHeader>> {
    let mut walk = Walk::new(file);
    Ok(walk.frame(0)?.ok().map(|frame| frame.header).filter(|header| header.first_of_segment))
}

impl Chain {
    /// Finds the live segments among all files. What it returns is linked; the frames within have yet to be walked.
    pub(crate) fn find(log_dir: &std::path::Path, files: Vec<SegmentFile>) -> Result<Self> {
        let mut free: Vec<(Option<Claim>, SegmentFile)> = Vec::new();
        for file in files {
            let claim = Walk::new(&file).claim(0)?;
            free.push((claim, file));
        }
        free.sort_by_key(|(claim, _)| claim.map_or(0, |claim| claim.generation));
        let newest = take(&mut free, |_| true)?
            .ok_or_else(|| corrupt(log_dir, "none of its segments begins with a whole frame"))?;
        let end = match frames(&newest.file, |_, _| Ok(()))? {
            Ok(end) => end,
            Err(why) => return Err(fault(&newest.file, 0, why)),
        };
        let oldest = end.last.oldest;
        let mut links = vec![newest];
        while let Some((generation, previous)) =
            links.last().map(|l| (l.first.generation, l.first.previous)).filter(|(g, _)| *g != oldest)
        {
            if previous < oldest {
                return Err(corrupt(
                    log_dir,
                    format_args!("segment {oldest} is needed, but segment {generation} follows segment {previous}"),
                ));
            }
            let link = take(&mut free, |claim| claim.generation == previous)?.ok_or_else(|| {
                corrupt(log_dir, format_args!("segment {previous} of the log is missing, or its beginning is damaged"))
            })?;
            links.push(link);
        }
        links.reverse();
        Ok(Chain { links, free: free.into_iter().map(|(_, file)| file).collect() })
    }
}

/// Takes out the whole segment of the highest generation among those wanted.
fn take(free: &mut Vec<(Option<Claim>, SegmentFile)>, wanted: impl Fn(&Claim) -> bool) -> Result<Option<Link>> {
    for n in (0..free.len()).rev() {
        let Some((Some(claim), file)) = free.get(n) else { continue };
        if !wanted(claim) {
            continue;
        }
        if let Some(first) = head(file)? {
            let (_, file) = free.remove(n);
            return Ok(Some(Link { file, first }));
        }
    }
    Ok(None)
}
