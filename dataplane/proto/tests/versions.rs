//! What two daemons agree on, and what a version has and has not.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_proto::negotiate::{Refusal, agree};
use dwcp_proto::wire::frame::Frame;
use dwcp_proto::wire::hello::{FEATURE_PAGES_ZSTD, Hello, HostName, features_of};
use dwcp_proto::wire::version::WireVersion;

fn hello(instance: u8) -> Hello {
    Hello::ours(HostName::cut("a"), [instance; 16])
}

#[test]
fn unlike_daemons_refuse_each_other_with_a_cure() {
    let ours = hello(1);
    let beyond = WireVersion::HIGHEST.number() + 1;
    let later = Hello { version_lowest: beyond, version_highest: beyond, ..hello(2) };
    let refusals = [
        (agree(&ours, &later), "refused_version"),
        (agree(&ours, &hello(2).with_plain_records()), "refused_we_lack_features"),
        (agree(&hello(2).with_plain_records(), &ours), "refused_peer_lacks_features"),
        (agree(&ours, &Hello { page_bytes: 16_384, ..hello(2) }), "refused_page_bytes"),
        (agree(&ours, &Hello { record_bytes_max: 4096, ..hello(2) }), "refused_record_bytes"),
        (agree(&ours, &ours), "refused_same_instance"),
    ];
    for (result, code) in refusals {
        let refusal: Refusal = result.unwrap_err();
        assert_eq!(refusal.code(), code);
        assert!(!refusal.cure().is_empty());
    }
    let agreed = agree(&ours, &Hello { version_highest: 9, streams_max: 3, ..hello(2) }).unwrap();
    assert_eq!((agreed.version, agreed.streams_max), (WireVersion::HIGHEST, 3));
    assert!(agreed.has(FEATURE_PAGES_ZSTD));
}

#[test]
fn a_link_has_no_feature_that_its_version_has_not() {
    let every = Hello { features_offered: u64::MAX, ..hello(1) };
    for version in WireVersion::ALL {
        let peer = Hello { version_highest: version.number(), instance: [2; 16], ..every.clone() };
        let agreed = agree(&every, &peer).unwrap();
        assert_eq!((agreed.version, agreed.features), (version, features_of(version)));
        let needs = Hello { features_required: 1 << 60, ..peer };
        assert_eq!(agree(&every, &needs).unwrap_err().code(), "refused_we_lack_features");
        assert_eq!(agree(&needs, &every).unwrap_err().code(), "refused_peer_lacks_features");
    }
}

#[test]
fn a_hello_of_a_later_version_is_read_and_its_new_fields_skipped() {
    let mut bytes = hello(1).encode();
    bytes.extend([9; 30]);
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    bytes.push(0x55);
    assert_eq!(Hello::decode(&bytes), Ok(Some((hello(1), bytes.len() - 1))));
}

#[test]
fn a_version_reads_no_type_of_frame_beyond_its_own() {
    let highest = |version| {
        let known = |kind: &u8| {
            let frame = [*kind, 0, 0, 0, 0, 0, 0, 0];
            let read = Frame::decode(version, &frame);
            read.map_or_else(|error| error.code(), |_| "") != "wire_unknown_value"
        };
        (1..=u8::MAX).take_while(known).count()
    };
    assert_eq!(WireVersion::ALL.map(highest), [13, 15]);
}
