// Several files of a home that change as one: all of them, or none, whatever happens on the way.
//
// What is to be is first written to one file of the home, the journal, whose commit is the moment of change. Then it is
// carried out, step by step, each of which may be repeated; a writer that opens the home with a journal in it carries
// it out before anything else.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "vmm/home/home_session.hpp"

namespace coffer::vmm {

struct TogetherFile {
    std::string name; // file_name() of a HomeFile
    ByteVector content;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, content);
    }
};

// A rename of a regular file, both absolute and in folders of one file system.
struct TogetherMove {
    std::string from;
    std::string to;

    template <class V>
    void fields(V& v) {
        v.required(1, from);
        v.required(2, to);
    }
};

struct TogetherChange {
    std::vector<TogetherMove> moves;
    std::vector<TogetherFile> files;
    HistoryKind event = HistoryKind::Other;
    std::string text; // of the event; one of a kind, so that a repeated step is told from another change

    template <class V>
    void fields(V& v) {
        v.required(1, moves);
        v.required(2, files);
        v.required(3, event);
        v.required(4, text);
    }
};

constexpr std::string_view k_together_journal = "snapshot-journal";

// After success the change is made. After an error it may be: the next writer that opens the home finishes it then.
Result<void> change_together(HomeSession& home, TogetherChange change);
// Carries out what a journal in the home says; nothing where there is none. For writers.
Result<void> finish_change(HomeSession& home);

} // namespace coffer::vmm
