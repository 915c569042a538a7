//! Where WebSocket frames begin and end, in bytes that pass by (RFC 6455, 5.2).
//!
//! Nothing is held, changed or judged: a tunnel passes whatever comes. All that is wanted is a place at which a frame of ours can stand.
//! Bytes that are no frames have none.

/// The opcode that closes.
const CLOSE: u8 = 8;

/// Follows the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Frames {
    at: At,
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Between frames.
    #[default]
    Start,
    /// After the first byte.
    Second,
    /// So many bytes of the length are to come, after these, and so many of the mask.
    Length { left: u8, length: u64, mask: u8 },
    /// So many bytes of the frame are to come.
    Rest(u64),
    /// These are no frames.
    Lost,
}

impl Frames {
    /// Whether a frame of ours could stand here: the last one is over, and it was not the one after which there is none.
    pub(super) fn is_between(&self) -> bool {
        self.at == At::Start && !self.closed
    }

    /// Whether the other side said that it closes, so that nothing is to be said any more.
    pub(super) fn is_closed(&self) -> bool {
        self.at == At::Start && self.closed
    }

    /// These bytes passed by.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// How many of these bytes belong to the frame under way: all of them, unless it ends among them.
    pub(super) fn rest(&self, bytes: &[u8]) -> usize {
        let (mut ahead, mut count) = (*self, 0);
        while ahead.at != At::Start && count < bytes.len() {
            count += ahead.step(&bytes[count..]);
        }
        count
    }

    /// Takes at least one of `bytes`, of which there are some, and none beyond the end of the frame; tells how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let byte = bytes[0];
        let mut taken = 1;
        self.at = match self.at {
            At::Start => {
                self.closed |= byte & 15 == CLOSE;
                At::Second
            }
            At::Second => {
                let mask = if byte & 128 == 0 { 0 } else { 4 };
                match byte & 127 {
                    126 => At::Length { left: 2, length: 0, mask },
                    127 => At::Length { left: 8, length: 0, mask },
                    length => At::rest(u64::from(length) + u64::from(mask)),
                }
            }
            At::Length { left, length, mask } => {
                let length = length << 8 | u64::from(byte);
                match left {
                    // The highest bit is never set.
                    1 if length >> 63 == 1 => At::Lost,
                    1 => At::rest(length + u64::from(mask)),
                    _ => At::Length { left: left - 1, length, mask },
                }
            }
            At::Rest(left) => {
                taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                At::rest(left - taken as u64)
            }
            At::Lost => {
                taken = bytes.len();
                At::Lost
            }
        };
        taken
    }
}

impl At {
    fn rest(left: u64) -> At {
        if left == 0 { At::Start } else { At::Rest(left) }
    }
}

/// A close frame that says 1001, going away: as a server says it, or masked as a client does.
pub(super) fn going_away(mask: Option<[u8; 4]>) -> arrayvec::ArrayVec<u8, 8> {
    let [high, low] = 1001_u16.to_be_bytes();
    let mut frame = arrayvec::ArrayVec::new();
    match mask {
        None => frame.extend([128 | CLOSE, 2, high, low]),
        Some(mask @ [a, b, ..]) => {
            frame.extend([128 | CLOSE, 128 | 2]);
            frame.extend(mask);
            frame.extend([high ^ a, low ^ b]);
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame of that many bytes of payload.
    fn frame(first: u8, length: usize, mask: Option<[u8; 4]>) -> Vec<u8> {
        let bit = if mask.is_some() { 128 } else { 0 };
        let mut frame = vec![first];
        match length {
            0..126 => frame.push(bit | length as u8),
            126..65_536 => {
                frame.push(bit | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(mask.into_iter().flatten());
        frame.extend(std::iter::repeat_n(0x88, length));
        frame
    }

    #[test]
    fn our_own_frames_are_frames() {
        for mask in [None, Some([1, 2, 3, 4])] {
            let mut frames = Frames::default();
            frames.follow(&going_away(mask));
            assert!(frames.is_closed() && !frames.is_between());
        }
        assert_eq!(going_away(None)[..], [0x88, 2, 3, 0xe9]);
        assert_eq!(going_away(Some([1, 2, 3, 4]))[..], [0x88, 0x82, 1, 2, 3, 4, 2, 0xeb]);
    }

    #[test]
    fn what_is_no_frame_has_no_end() {
        let mut frames = Frames::default();
        frames.follow(&[0x82, 127, 128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((frames.at, frames.rest(&[0; 9])), (At::Lost, 9));
        frames.follow(&[0; 9]);
        assert!(!frames.is_between() && !frames.is_closed());
        let mut frames = Frames::default();
        frames.follow(&[0x82, 0xff, 127, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(frames.at, At::Rest((1 << 63) + 3));
    }

    proptest! {
        #[test]
        fn frames_end_where_they_end(
            given in proptest::collection::vec((0u8..8, prop_oneof![0usize..300, 65_530usize..65_540], any::<Option<[u8; 4]>>()), 1..5),
            cut in any::<proptest::sample::Index>(),
        ) {
            let all: Vec<Vec<u8>> = given.iter().map(|(first, length, mask)| frame(*first, *length, *mask)).collect();
            let bytes = all.concat();
            let cut = cut.index(bytes.len() + 1);
            let mut frames = Frames::default();
            frames.follow(&bytes[..cut]);
            let ends: Vec<usize> = all.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }).collect();
            prop_assert_eq!(frames.is_between(), cut == 0 || ends.contains(&cut));
            let next = if frames.is_between() { cut } else { *ends.iter().find(|end| **end > cut).unwrap() };
            prop_assert_eq!(frames.rest(&bytes[cut..]), next - cut);
            frames.follow(&bytes[cut..]);
            prop_assert!(frames.is_between());
        }
    }
}
